#include "integer_net.h"

#include <cstring>
#include <utility>

namespace fasdiff {
namespace {

constexpr int kRows = 4;  // Output channels per call of Dot2x4.

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

}  // namespace

Status ConvLayer::Init(int cin, int cout, int k, int shift, int lo, int hi, const int8_t* weight,
                       const int32_t* bias) {
  if (cin < 1 || cin > 2 * kMaxChannels || cout < 1 || cout > kMaxChannels) {
    return Status::kModelBadLayer;
  }
  if ((k != 1 && k != 3) || shift < 1 || shift > kMaxLayerShift) return Status::kModelBadLayer;
  if (lo < INT16_MIN || hi > INT16_MAX || lo > hi) return Status::kModelBadLayer;
  cin_ = cin, cout_ = cout, k_ = k, shift_ = shift, lo_ = lo, hi_ = hi;
  const int padded = PadChannels(cin);
  const size_t rows = static_cast<size_t>((cout + kRows - 1) / kRows * kRows);
  run_ = k * k * padded;
  weight_.assign(rows * static_cast<size_t>(run_), 0);
  bias_.assign(rows, 0);
  for (int o = 0; o < cout; ++o) {
    if (bias[o] <= -kBiasLimit || bias[o] >= kBiasLimit) return Status::kModelBadBias;
    bias_[static_cast<size_t>(o)] = bias[o];
    int16_t* row = weight_.data() + static_cast<ptrdiff_t>(o) * run_;
    for (int c = 0; c < cin; ++c) {
      for (int tap = 0; tap < k * k; ++tap) row[tap * padded + c] = *weight++;
    }
  }
  return Status::kOk;
}

Status ConvLayer::CheckAccumulator(int max_input) const {
  int64_t bias = 0;
  for (const int32_t b : bias_) {
    const int64_t magnitude = b < 0 ? -int64_t{b} : int64_t{b};
    if (magnitude > bias) bias = magnitude;
  }
  const int64_t bound = int64_t{cin_} * k_ * k_ * 128 * max_input + bias;
  return bound < (int64_t{1} << 31) ? Status::kOk : Status::kModelAccumulatorTooWide;
}

const int16_t* ConvLayer::Gather(const int16_t* x, int x_stride, int height, int width, int i,
                                 int j, int16_t* patch) const {
  const auto at = [&](int row, int column) {
    return x + (static_cast<ptrdiff_t>(row) * width + column) * x_stride;
  };
  if (k_ == 1) return at(i, j);
  const size_t channels = static_cast<size_t>(PadChannels(cin_));
  int16_t* to = patch;
  for (int row = i - 1; row <= i + 1; ++row) {
    for (int column = j - 1; column <= j + 1; ++column, to += channels) {
      const bool inside = row >= 0 && row < height && column >= 0 && column < width;
      if (inside) {
        std::memcpy(to, at(row, column), channels * sizeof(int16_t));
      } else {
        std::memset(to, 0, channels * sizeof(int16_t));
      }
    }
  }
  return patch;
}

void ConvLayer::Requantise(const int32_t* acc, int first, int16_t* out) const {
  for (int r = 0; r < kRows && first + r < cout_; ++r) {
    const int32_t sum = acc[r] + bias_[static_cast<size_t>(first + r)];
    // (sum + 2^(shift - 1)) >> shift without the addition that could overflow.
    const int32_t rounded = (sum >> shift_) + ((sum >> (shift_ - 1)) & 1);
    out[first + r] = static_cast<int16_t>(Clamp(rounded, lo_, hi_));
  }
}

void ConvLayer::Run(const int16_t* x, int x_stride, int height, int width, Half half, int16_t* out,
                    int out_stride, std::vector<int16_t>* patch) const {
  patch->resize(2 * static_cast<size_t>(run_));
  const int step = half == Half::kAll ? 1 : 2;
  for (int i = 0; i < height; ++i) {
    const int start = half == Half::kAll ? 0 : (i + static_cast<int>(half)) % 2;
    for (int j0 = start; j0 < width; j0 += 2 * step) {
      const int j1 = j0 + step < width ? j0 + step : j0;  // A lone last position is done twice.
      const int16_t* x0 = Gather(x, x_stride, height, width, i, j0, patch->data());
      const int16_t* x1 =
          j1 == j0 ? x0 : Gather(x, x_stride, height, width, i, j1, patch->data() + run_);
      int16_t* out0 = out + (static_cast<ptrdiff_t>(i) * width + j0) * out_stride;
      int16_t* out1 = out + (static_cast<ptrdiff_t>(i) * width + j1) * out_stride;
      for (int first = 0; first < cout_; first += kRows) {
        int32_t acc[2 * kRows];
        Dot2x4(x0, x1, weight_.data() + static_cast<ptrdiff_t>(first) * run_, run_, acc);
        Requantise(acc, first, out0);
        if (j1 != j0) Requantise(acc + kRows, first, out1);
      }
    }
  }
}

Status IntegerNet::Append(ConvLayer layer) {
  if (!layers_.empty() && layer.cin() != cout()) return Status::kModelBadLayerChain;
  layers_.push_back(std::move(layer));
  return Status::kOk;
}

Status IntegerNet::CheckAccumulators(int max_input) const {
  for (const ConvLayer& layer : layers_) {
    const Status status = layer.CheckAccumulator(max_input);
    if (status != Status::kOk) return status;
    max_input = layer.max_output();
  }
  return Status::kOk;
}

void IntegerNet::Run(const int16_t* x, int x_stride, int height, int width, Half half, int16_t* out,
                     int out_stride, Scratch* scratch) const {
  // A layer computes one half only if no later layer looks at neighbours.
  size_t first_halved = layers_.size() - 1;
  while (first_halved > 0 && layers_[first_halved].k() == 1) --first_halved;
  const size_t positions = static_cast<size_t>(height) * static_cast<size_t>(width);
  for (size_t l = 0; l < layers_.size(); ++l) {
    const ConvLayer& layer = layers_[l];
    const bool last = l + 1 == layers_.size();
    const int stride = last ? out_stride : PadChannels(layer.cout());
    int16_t* to = out;
    if (!last) {
      std::vector<int16_t>& hidden = scratch->hidden[l % 2];
      const size_t needed = positions * static_cast<size_t>(stride);
      if (hidden.size() < needed) hidden.resize(needed);
      to = hidden.data();
    }
    layer.Run(x, x_stride, height, width, l >= first_halved ? half : Half::kAll, to, stride,
              &scratch->patch);
    x = to;
    x_stride = stride;
  }
}

}  // namespace fasdiff
