// Convolution layers without vector instructions.
#include <cstring>

#include "conv_kernel.h"

namespace fasdiff {
namespace {

constexpr int kRows = 4;  // Output channels per call of Dot2x4.

int PadChannels(int channels) { return (channels + 7) & ~7; }

// int16 values under the dot product of one output.
int RunLength(const ConvShape& s) { return s.k * s.k * PadChannels(s.cin); }

// Weights lie as [cout rounded up to 4][k][k][PadChannels(cin)].
size_t PackedBytes(const ConvShape& s) {
  const size_t rows = static_cast<size_t>((s.cout + kRows - 1) / kRows * kRows);
  return rows * static_cast<size_t>(RunLength(s)) * sizeof(int16_t);
}

void Pack(const ConvShape& s, const int8_t* weight, void* packed) {
  const int padded = PadChannels(s.cin);
  for (int o = 0; o < s.cout; ++o) {
    int16_t* row = static_cast<int16_t*>(packed) + static_cast<ptrdiff_t>(o) * RunLength(s);
    for (int c = 0; c < s.cin; ++c) {
      for (int tap = 0; tap < s.k * s.k; ++tap) row[tap * padded + c] = *weight++;
    }
  }
}

size_t ScratchBytes(const ConvShape& s, const ConvArea&) {
  return 2 * static_cast<size_t>(RunLength(s)) * sizeof(int16_t);
}

// acc[4 * p + r] = dot(x_p, row r of w) for two positions and four rows of n values, n % 8 == 0.
// Eight sums live in registers, each weight is loaded once for two positions, and the products of
// int16 pairs added in int32 are what compilers turn into pmaddwd or smlal.
void Dot2x4(const int16_t* x0, const int16_t* x1, const int16_t* w, int n, int32_t* acc) {
  const int16_t* w0 = w;
  const int16_t* w1 = w0 + n;
  const int16_t* w2 = w1 + n;
  const int16_t* w3 = w2 + n;
  int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  for (int i = 0; i < (n & ~7); ++i) {
    const int32_t u = x0[i], v = x1[i];
    a0 += u * w0[i];
    a1 += u * w1[i];
    a2 += u * w2[i];
    a3 += u * w3[i];
    b0 += v * w0[i];
    b1 += v * w1[i];
    b2 += v * w2[i];
    b3 += v * w3[i];
  }
  acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
  acc[4] = b0, acc[5] = b1, acc[6] = b2, acc[7] = b3;
}

// The activations under the kernel at (i, j) as one run.
const int16_t* Gather(const ConvShape& s, const int16_t* x, int x_stride, const ConvArea& area,
                      int i, int j, int16_t* patch) {
  const auto at = [&](int row, int column) {
    return x + (static_cast<ptrdiff_t>(row) * area.width + column) * x_stride;
  };
  if (s.k == 1) return at(i, j);
  const size_t channels = static_cast<size_t>(PadChannels(s.cin));
  int16_t* to = patch;
  for (int row = i - 1; row <= i + 1; ++row) {
    for (int column = j - 1; column <= j + 1; ++column, to += channels) {
      const bool inside = row >= 0 && row < area.height && column >= 0 && column < area.width;
      if (inside) {
        std::memcpy(to, at(row, column), channels * sizeof(int16_t));
      } else {
        std::memset(to, 0, channels * sizeof(int16_t));
      }
    }
  }
  return patch;
}

void Requantise(const ConvShape& s, const int32_t* bias, const int32_t* acc, int first,
                int16_t* out) {
  for (int r = 0; r < kRows && first + r < s.cout; ++r) {
    const int32_t sum = acc[r] + bias[first + r];
    // (sum + 2^(shift - 1)) >> shift without the addition that could overflow.
    const int32_t v = (sum >> s.shift) + ((sum >> (s.shift - 1)) & 1);
    out[first + r] = static_cast<int16_t>(v < s.lo ? s.lo : (v > s.hi ? s.hi : v));
  }
}

bool Run(const ConvShape& s, const void* packed, const int32_t* bias, const int16_t* x,
         int x_stride, const ConvArea& area, int16_t* out, int out_stride, void* scratch) {
  const int16_t* weight = static_cast<const int16_t*>(packed);
  const int run = RunLength(s);
  int16_t* patch0 = static_cast<int16_t*>(scratch);
  int16_t* patch1 = patch0 + run;
  const int step = area.column_step;
  for (int i = area.first_row; i < area.height; i += area.row_step) {
    for (int j0 = area.first_column[i % 2]; j0 < area.width; j0 += 2 * step) {
      // A lone last position is done twice.
      const int j1 = j0 + step < area.width ? j0 + step : j0;
      const int16_t* x0 = Gather(s, x, x_stride, area, i, j0, patch0);
      const int16_t* x1 = j1 == j0 ? x0 : Gather(s, x, x_stride, area, i, j1, patch1);
      int16_t* out0 = out + (static_cast<ptrdiff_t>(i) * area.width + j0) * out_stride;
      int16_t* out1 = out + (static_cast<ptrdiff_t>(i) * area.width + j1) * out_stride;
      for (int first = 0; first < s.cout; first += kRows) {
        int32_t acc[2 * kRows];
        Dot2x4(x0, x1, weight + static_cast<ptrdiff_t>(first) * run, run, acc);
        Requantise(s, bias, acc, first, out0);
        if (j1 != j0) Requantise(s, bias, acc + kRows, first, out1);
      }
    }
  }
  return true;
}

}  // namespace

const ConvKernel kConvWideScalar = {PackedBytes, Pack, ScratchBytes, Run};

}  // namespace fasdiff
