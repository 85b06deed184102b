#include "frequency_split.h"

#include <vector>

namespace fasdiff {
namespace {

constexpr int kColours = 3;
constexpr int kLevel1 = 12;  // The first channel of level 1.

// Square roots of 3, 2 and 6: the norms of the three rows of the colour transform.
constexpr double kColourNorm[kColours] = {1.7320508075688772, 1.4142135623730951,
                                          2.4494897427831779};
constexpr double kHalfRange = 127.5;

// A row of 4x4 blocks, in memory that a vector loop can run along: value (row y, column 4 j + x)
// of a colour is at ((colour * 4 + y) * 4 + x) * blocks + j.
template <typename T>
class BlockRow {
 public:
  explicit BlockRow(int blocks)
      : blocks_(blocks), data_(static_cast<size_t>(kColours) * 16 * static_cast<size_t>(blocks)) {}

  T* At(int colour, int y, int x) {
    return data_.data() + static_cast<ptrdiff_t>((colour * 4 + y) * 4 + x) * blocks_;
  }

 private:
  const ptrdiff_t blocks_;
  std::vector<T> data_;
};

Status CheckImage(int height, int width) {
  if (height < 1 || width < 1) return Status::kEmptyImage;
  if (height > kMaxImageSide || width > kMaxImageSide) return Status::kImageTooLarge;
  return Status::kOk;
}

// Half-sample symmetric reflection of any index >= 0 into [0, side).
int Reflect(int index, int side) {
  const int phase = index % (2 * side);
  return phase < side ? phase : 2 * side - 1 - phase;
}

// Channel of a level-1 coefficient; band 0 is hl1, 1 lh1, 2 hh1.
int Level1Channel(int band, int colour, int dy, int dx) {
  return kLevel1 + 12 * band + 4 * colour + 2 * dy + dx;
}

// Unnormalised colours of one image row: sums of at most 4 * 255 that stay exact in integers.
void LoadRow(const uint8_t* row, int width, int blocks, int y, BlockRow<int16_t>* pixels) {
  const auto load = [&](int column, int x, int j) {
    const uint8_t* rgb = row + static_cast<ptrdiff_t>(column) * 3;
    const int red = rgb[0], green = rgb[1], blue = rgb[2];
    pixels->At(0, y, x)[j] = static_cast<int16_t>(red + green + blue);
    pixels->At(1, y, x)[j] = static_cast<int16_t>(red - blue);
    pixels->At(2, y, x)[j] = static_cast<int16_t>(red - 2 * green + blue);
  };
  const int whole = width / 4;
  for (int x = 0; x < 4; ++x) {
    for (int j = 0; j < whole; ++j) load(4 * j + x, x, j);
    for (int j = whole; j < blocks; ++j) load(Reflect(4 * j + x, width), x, j);
  }
}

// One level on `blocks` 2x2 blocks, without the factor 1/2; four bands out.
void Haar(const int16_t* a, const int16_t* b, const int16_t* c, const int16_t* d, int blocks,
          int16_t* ll, int16_t* hl, int16_t* lh, int16_t* hh) {
  for (int j = 0; j < blocks; ++j) {
    const int top = a[j] + b[j], top_diff = a[j] - b[j];
    const int low = c[j] + d[j], low_diff = c[j] - d[j];
    ll[j] = static_cast<int16_t>(top + low);
    hl[j] = static_cast<int16_t>(top_diff + low_diff);
    lh[j] = static_cast<int16_t>(top - low);
    hh[j] = static_cast<int16_t>(top_diff - low_diff);
  }
}

void Store(const int16_t* from, int blocks, int bias, float scale, float* to) {
  for (int j = 0; j < blocks; ++j) to[j] = static_cast<float>(from[j] - bias) * scale;
}

// The inverse of Haar, with the factor 1/2.
void InverseHaar(const float* ll, const float* hl, const float* lh, const float* hh, int blocks,
                 float* a, float* b, float* c, float* d) {
  for (int j = 0; j < blocks; ++j) {
    const float top = ll[j] + lh[j], top_diff = hl[j] + hh[j];
    const float low = ll[j] - lh[j], low_diff = hl[j] - hh[j];
    a[j] = 0.5f * (top + top_diff);
    b[j] = 0.5f * (top - top_diff);
    c[j] = 0.5f * (low + low_diff);
    d[j] = 0.5f * (low - low_diff);
  }
}

// [-1, 1] -> 0..255, half to even: adding 2^23 leaves no room for a fraction. Not a number -> 0.
inline float ToByte(float p) {
  constexpr float kTwo23 = 8388608.0f;
  float v = p * 127.5f + 127.5f;
  v = v > 0.0f ? v : 0.0f;
  v = v < 255.0f ? v : 255.0f;
  return (v + kTwo23) - kTwo23;
}

// Colours to RGB in place.
void ToRgb(float* c0, float* c1, float* c2, int blocks) {
  constexpr float kInv3 = static_cast<float>(1 / kColourNorm[0]);
  constexpr float kInv2 = static_cast<float>(1 / kColourNorm[1]);
  constexpr float kInv6 = static_cast<float>(1 / kColourNorm[2]);
  for (int j = 0; j < blocks; ++j) {
    const float grey = c0[j] * kInv3, red_blue = c1[j] * kInv2, green = c2[j] * kInv6;
    c0[j] = ToByte(grey + red_blue + green);
    c1[j] = ToByte(grey - 2.0f * green);
    c2[j] = ToByte(grey - red_blue + green);
  }
}

void StoreRow(BlockRow<float>* pixels, int y, int width, uint8_t* row) {
  for (int x = 0; x < 4; ++x) {
    const float* red = pixels->At(0, y, x);
    const float* green = pixels->At(1, y, x);
    const float* blue = pixels->At(2, y, x);
    for (int j = 0; 4 * j + x < width; ++j) {
      uint8_t* rgb = row + static_cast<ptrdiff_t>(4 * j + x) * 3;
      rgb[0] = static_cast<uint8_t>(static_cast<int>(red[j]));
      rgb[1] = static_cast<uint8_t>(static_cast<int>(green[j]));
      rgb[2] = static_cast<uint8_t>(static_cast<int>(blue[j]));
    }
  }
}

}  // namespace

Status SplitBands(const uint8_t* image, int height, int width, float* bands) {
  const Status status = CheckImage(height, width);
  if (status != Status::kOk) return status;
  const int band_height = BandSide(height), blocks = BandSide(width);
  const ptrdiff_t plane = static_cast<ptrdiff_t>(band_height) * blocks;
  BlockRow<int16_t> pixels(blocks);
  std::vector<int16_t> scratch(8 * static_cast<size_t>(blocks));
  const auto part = [&](int i) { return scratch.data() + static_cast<ptrdiff_t>(i) * blocks; };
  for (int i = 0; i < band_height; ++i) {
    for (int y = 0; y < 4; ++y) {
      const ptrdiff_t source = Reflect(4 * i + y, height);
      LoadRow(image + source * width * 3, width, blocks, y, &pixels);
    }
    const auto out = [&](int channel) {
      return bands + channel * plane + static_cast<ptrdiff_t>(i) * blocks;
    };
    for (int colour = 0; colour < kColours; ++colour) {
      const double unit = 1 / (kHalfRange * kColourNorm[colour]);
      const float level1 = static_cast<float>(unit / 2), level2 = static_cast<float>(unit / 4);
      for (int dy = 0; dy < 2; ++dy) {
        for (int dx = 0; dx < 2; ++dx) {
          Haar(pixels.At(colour, 2 * dy, 2 * dx), pixels.At(colour, 2 * dy, 2 * dx + 1),
               pixels.At(colour, 2 * dy + 1, 2 * dx), pixels.At(colour, 2 * dy + 1, 2 * dx + 1),
               blocks, part(2 * dy + dx), part(4), part(5), part(6));
          for (int band = 0; band < 3; ++band) {
            Store(part(4 + band), blocks, 0, level1, out(Level1Channel(band, colour, dy, dx)));
          }
        }
      }
      Haar(part(0), part(1), part(2), part(3), blocks, part(4), part(5), part(6), part(7));
      // p is centred: a mid-grey block of 16 pixels and three colours sums to 48 * 127.5.
      Store(part(4), blocks, colour == 0 ? 6120 : 0, level2, out(colour));
      for (int band = 1; band < 4; ++band) {
        Store(part(4 + band), blocks, 0, level2, out(3 * band + colour));
      }
    }
  }
  return Status::kOk;
}

Status MergeBands(const float* bands, int band_height, int band_width, int height, int width,
                  uint8_t* image) {
  const Status status = CheckImage(height, width);
  if (status != Status::kOk) return status;
  if (band_height != BandSide(height) || band_width != BandSide(width)) {
    return Status::kBadBandShape;
  }
  const int blocks = band_width;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(band_height) * blocks;
  BlockRow<float> pixels(blocks);
  std::vector<float> scratch(4 * static_cast<size_t>(blocks));
  const auto part = [&](int i) { return scratch.data() + static_cast<ptrdiff_t>(i) * blocks; };
  for (int i = 0; 4 * i < height; ++i) {
    const auto in = [&](int channel) {
      return bands + channel * plane + static_cast<ptrdiff_t>(i) * blocks;
    };
    for (int colour = 0; colour < kColours; ++colour) {
      InverseHaar(in(colour), in(3 + colour), in(6 + colour), in(9 + colour), blocks, part(0),
                  part(1), part(2), part(3));
      for (int dy = 0; dy < 2; ++dy) {
        for (int dx = 0; dx < 2; ++dx) {
          InverseHaar(part(2 * dy + dx), in(Level1Channel(0, colour, dy, dx)),
                      in(Level1Channel(1, colour, dy, dx)), in(Level1Channel(2, colour, dy, dx)),
                      blocks, pixels.At(colour, 2 * dy, 2 * dx),
                      pixels.At(colour, 2 * dy, 2 * dx + 1), pixels.At(colour, 2 * dy + 1, 2 * dx),
                      pixels.At(colour, 2 * dy + 1, 2 * dx + 1));
        }
      }
    }
    for (int y = 0; y < 4 && 4 * i + y < height; ++y) {
      for (int x = 0; x < 4; ++x) {
        ToRgb(pixels.At(0, y, x), pixels.At(1, y, x), pixels.At(2, y, x), blocks);
      }
      StoreRow(&pixels, y, width, image + static_cast<ptrdiff_t>(4 * i + y) * width * 3);
    }
  }
  return Status::kOk;
}

}  // namespace fasdiff
