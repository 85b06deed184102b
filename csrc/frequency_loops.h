// The loops of the frequency split, for any vector unit: one pass over memory for both levels.
//
// A `Unit` works on kBlocks blocks of 4x4 pixels side by side, one in each 32-bit lane. From four
// image rows to 48 bands everything stays in registers:
//
//   bytes   a lane holds one colour of the four pixels of a block's row
//   pairs   a lane holds two int16, for the pixels 0, 1 and for the pixels 2, 3 of that row
//   ints    a lane holds an int32; then floats, stored once
//
// Split is exact in integers up to one multiplication, and merge does the same float operations in
// the same order for every unit, so that all units give the same bits.
//
// Everything is in an unnamed namespace and nothing of the standard library is instantiated: each
// unit's source has its own compiler flags, and the linker must not put one's code in another's
// place.
#ifndef FASDIFF_CSRC_FREQUENCY_LOOPS_H_
#define FASDIFF_CSRC_FREQUENCY_LOOPS_H_

#include <cstring>

#include "frequency_kernel.h"

namespace fasdiff {
namespace {

constexpr int kBandCount = 48;
constexpr int kLevel1 = 12;  // The first channel of level 1.

// A pixel is p = (v - 127.5) / 127.5; the colours' norms are the square roots of 3, 2 and 6.
constexpr double kUnit[3] = {1 / (127.5 * 1.7320508075688772), 1 / (127.5 * 1.4142135623730951),
                             1 / (127.5 * 2.4494897427831779)};
// p is centred: a mid-grey block of 16 pixels and three colours sums to 48 * 127.5.
constexpr int kGreySum = 6120;
// Split multiplies sums of 4 pixels (level 1) and of 16 pixels (level 2); merge multiplies bands.
constexpr float kSplit1[3] = {static_cast<float>(kUnit[0] / 2), static_cast<float>(kUnit[1] / 2),
                              static_cast<float>(kUnit[2] / 2)};
constexpr float kSplit2[3] = {static_cast<float>(kUnit[0] / 4), static_cast<float>(kUnit[1] / 4),
                              static_cast<float>(kUnit[2] / 4)};
constexpr double kRange2 = 127.5 * 127.5;
constexpr float kMerge1[3] = {static_cast<float>(kRange2 * kUnit[0] / 2),
                              static_cast<float>(kRange2 * kUnit[1] / 2),
                              static_cast<float>(kRange2 * kUnit[2] / 2)};
constexpr float kMerge2[3] = {static_cast<float>(kRange2 * kUnit[0] / 4),
                              static_cast<float>(kRange2 * kUnit[1] / 4),
                              static_cast<float>(kRange2 * kUnit[2] / 4)};
constexpr float kMidGrey = 127.5f;

// Channel of a level-1 coefficient; band 0 is hl1, 1 lh1, 2 hh1.
constexpr int Level1Channel(int band, int colour, int dy, int dx) {
  return kLevel1 + 12 * band + 4 * colour + 2 * dy + dx;
}

// Half-sample symmetric reflection of any index >= 0 into [0, side).
inline int Reflect(int index, int side) {
  const int phase = index % (2 * side);
  return phase < side ? phase : 2 * side - 1 - phase;
}

template <typename Unit>
struct FrequencyLoops {
  using Bytes = typename Unit::Bytes;
  using Pairs = typename Unit::Pairs;
  using Floats = typename Unit::Floats;

  static constexpr int kBlocks = Unit::kBlocks;
  static_assert(kBlocks <= 16, "planes have a multiple of 16 blocks, and no less");
  static constexpr int kGroupBytes = 12 * kBlocks;
  static constexpr int kReadBytes = kGroupBytes + 4;  // What LoadPixels touches.

  // Between pixels and bands lies a tile: so many blocks in the order of a band's plane, crossing
  // from row to row. The 48 planes are then read and written in runs of a tile. Touched block by
  // block, planes whose size is a power of two would all compete for the same few places in the
  // first-level cache.
  static constexpr int kSplitTile = 256;
  static constexpr int kMergeTile = 64;
  static constexpr int kNumPairs = 24;  // Kinds of pairs, of which each gives two bands.
  static constexpr int kPairStride = 2 * (kSplitTile + kBlocks);
  static constexpr int kFloatStride = kMergeTile + kBlocks;

  // The unnormalised colours, of horizontal sums or differences alike.
  static void ToColours(Pairs red, Pairs green, Pairs blue, Pairs* colours) {
    const Pairs red_blue = Unit::Plus(red, blue);
    colours[0] = Unit::Plus(red_blue, green);
    colours[1] = Unit::Minus(red, blue);
    colours[2] = Unit::Minus(red_blue, Unit::Plus(green, green));
  }

  // Four rows of pixels -> one group of blocks in the tile. Rows of the tile: 9 * dy + 3 * colour +
  // band of level 1; then 18 + 2 * colour for sums of ll1 down its rows, + 1 for differences.
  static void SplitGroup(const uint8_t* const rows[4], int16_t* tile) {
    Pairs ll[2][3];
    for (int dy = 0; dy < 2; ++dy) {
      Pairs sum[2][3], difference[2][3];
      for (int y = 0; y < 2; ++y) {
        Bytes red, green, blue;
        Unit::LoadPixels(rows[2 * dy + y], &red, &green, &blue);
        ToColours(Unit::SumPairs(red), Unit::SumPairs(green), Unit::SumPairs(blue), sum[y]);
        ToColours(Unit::DiffPairs(red), Unit::DiffPairs(green), Unit::DiffPairs(blue),
                  difference[y]);
      }
      for (int c = 0; c < 3; ++c) {
        int16_t* to = tile + (9 * dy + 3 * c) * kPairStride;
        ll[dy][c] = Unit::Plus(sum[0][c], sum[1][c]);
        Unit::StorePairs(Unit::Plus(difference[0][c], difference[1][c]), to);
        Unit::StorePairs(Unit::Minus(sum[0][c], sum[1][c]), to + kPairStride);
        Unit::StorePairs(Unit::Minus(difference[0][c], difference[1][c]), to + 2 * kPairStride);
      }
    }
    for (int c = 0; c < 3; ++c) {
      int16_t* to = tile + (18 + 2 * c) * kPairStride;
      Unit::StorePairs(Unit::Plus(ll[0][c], ll[1][c]), to);
      Unit::StorePairs(Unit::Minus(ll[0][c], ll[1][c]), to + kPairStride);
    }
  }

  // Calls store(j) for groups that cover 0..count and, but for the first and the last, start where
  // `to` is aligned: a store across two cache lines takes several times as long.
  template <typename StoreGroup>
  static void ForAligned(const float* to, int count, const StoreGroup& store) {
    constexpr size_t kLine = 16;  // Floats of a cache line.
    const size_t past = reinterpret_cast<uintptr_t>(to) / sizeof(float) % kLine;
    store(0);
    for (int j = static_cast<int>(kLine - past) % kBlocks; j + kBlocks <= count; j += kBlocks) {
      store(j);
    }
    store(count - kBlocks);
  }

  static void StoreTile(const int16_t* tile, int count, ptrdiff_t plane, float* bands) {
    for (int dy = 0; dy < 2; ++dy) {
      for (int c = 0; c < 3; ++c) {
        for (int band = 0; band < 3; ++band, tile += kPairStride) {
          float* to = bands + Level1Channel(band, c, dy, 0) * plane;
          ForAligned(to, count, [&](int j) {
            const Pairs v = Unit::LoadPairs(tile + 2 * j);
            Unit::Store(Unit::Times(Unit::First(v), kSplit1[c]), to + j);
            Unit::Store(Unit::Times(Unit::Second(v), kSplit1[c]), to + plane + j);
          });
        }
      }
    }
    for (int c = 0; c < 3; ++c) {
      for (int lh = 0; lh < 2; ++lh, tile += kPairStride) {
        const int centre = c == 0 && lh == 0 ? kGreySum : 0;
        float* to = bands + (6 * lh + c) * plane;
        ForAligned(to, count, [&](int j) {
          const Pairs v = Unit::LoadPairs(tile + 2 * j);
          Unit::Store(Unit::Times(Unit::Offset(Unit::Sum(v), -centre), kSplit2[c]), to + j);
          Unit::Store(Unit::Times(Unit::Diff(v), kSplit2[c]), to + 3 * plane + j);
        });
      }
    }
  }

  // Copies the pixels of a group out of their row, and reflects those that the row does not have.
  static void Pad(const uint8_t* row, int width, int column, uint8_t* to) {
    const int left = width - column;
    const int inside = left < 0 ? 0 : (left < 4 * kBlocks ? left : 4 * kBlocks);
    if (inside > 0) {
      std::memcpy(to, row + static_cast<ptrdiff_t>(column) * 3, static_cast<size_t>(inside) * 3);
    }
    for (int x = inside; x < 4 * kBlocks; ++x) {
      std::memcpy(to + 3 * x, row + static_cast<ptrdiff_t>(Reflect(column + x, width)) * 3, 3);
    }
    std::memset(to + kGroupBytes, 0, kReadBytes - kGroupBytes);
  }

  static void Split(const uint8_t* image, int height, int width, int rows, int blocks,
                    float* bands) {
    alignas(64) int16_t tile[kNumPairs * kPairStride];
    const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(width) * 3;
    const uint8_t* end = image + height * row_bytes;
    const ptrdiff_t plane = static_cast<ptrdiff_t>(rows) * blocks;
    int i = 0, j = 0, count = 0;  // Row and column of the next block; blocks in the tile.
    for (ptrdiff_t done = 0; done < plane; done += count) {
      for (count = 0; count < kSplitTile && i < rows;) {
        uint8_t padded[4][kReadBytes];
        const uint8_t* from[4];
        for (int y = 0; y < 4; ++y) {
          const uint8_t* row = image + Reflect(4 * i + y, height) * row_bytes;
          const ptrdiff_t offset = static_cast<ptrdiff_t>(j) * 12;
          if (4 * (j + kBlocks) <= width && end - row >= offset + kReadBytes) {
            from[y] = row + offset;
          } else {
            Pad(row, width, 4 * j, padded[y]);
            from[y] = padded[y];
          }
        }
        SplitGroup(from, tile + 2 * count);
        // What is beyond the row or the tile is written over, or not stored.
        int taken = blocks - j < kBlocks ? blocks - j : kBlocks;
        if (taken > kSplitTile - count) taken = kSplitTile - count;
        count += taken;
        j += taken;
        if (j == blocks) j = 0, ++i;
      }
      StoreTile(tile, count, plane, bands + done);
    }
  }

  // One level of the inverse, all factors left out; out is [dy][dx].
  static void InverseHaar(Floats ll, Floats hl, Floats lh, Floats hh, Floats out[2][2]) {
    const Floats top = Unit::Add(ll, lh), top_diff = Unit::Add(hl, hh);
    const Floats low = Unit::Sub(ll, lh), low_diff = Unit::Sub(hl, hh);
    out[0][0] = Unit::Add(top, top_diff);
    out[0][1] = Unit::Sub(top, top_diff);
    out[1][0] = Unit::Add(low, low_diff);
    out[1][1] = Unit::Sub(low, low_diff);
  }

  static void LoadTile(const float* bands, int count, ptrdiff_t plane, float* tile) {
    for (int channel = 0; channel < kBandCount; ++channel) {
      const bool first_level = channel >= kLevel1;
      const int c = first_level ? channel % 12 / 4 : channel % 3;
      const float factor = first_level ? kMerge1[c] : kMerge2[c];
      const float* from = bands + channel * plane;
      float* to = tile + channel * kFloatStride;
      for (int j = 0; j < count; j += kBlocks) {
        Unit::Store(Unit::Scale(Unit::Load(from + j), factor), to + j);
      }
    }
  }

  static void MergeGroup(const float* tile, uint8_t* const rows[4]) {
    const auto load = [&](int channel) { return Unit::Load(tile + channel * kFloatStride); };
    Floats ll[3][2][2];
    for (int c = 0; c < 3; ++c) {
      // Every pixel of a block takes its mid-grey from here.
      const Floats ll2 = c == 0 ? Unit::Add(load(0), Unit::Splat(kMidGrey)) : load(c);
      InverseHaar(ll2, load(3 + c), load(6 + c), load(9 + c), ll[c]);
    }
    for (int dy = 0; dy < 2; ++dy) {
      Floats pixels[2][4][3];  // [row][column][colour].
      for (int dx = 0; dx < 2; ++dx) {
        Floats colours[3][2][2];
        for (int c = 0; c < 3; ++c) {
          InverseHaar(ll[c][dy][dx], load(Level1Channel(0, c, dy, dx)),
                      load(Level1Channel(1, c, dy, dx)), load(Level1Channel(2, c, dy, dx)),
                      colours[c]);
        }
        for (int y = 0; y < 2; ++y) {
          for (int x = 0; x < 2; ++x) {
            const Floats grey = colours[0][y][x], red_blue = colours[1][y][x];
            const Floats green = colours[2][y][x], sum = Unit::Add(grey, green);
            Floats* rgb = pixels[y][2 * dx + x];
            rgb[0] = Unit::Add(sum, red_blue);
            rgb[1] = Unit::Sub(grey, Unit::Add(green, green));
            rgb[2] = Unit::Sub(sum, red_blue);
          }
        }
      }
      for (int y = 0; y < 2; ++y) Unit::StorePixels(pixels[y], rows[2 * dy + y]);
    }
  }

  static void Merge(const float* bands, int rows, int blocks, int height, int width,
                    uint8_t* image) {
    alignas(64) float tile[kBandCount * kFloatStride] = {};
    const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(width) * 3;
    const ptrdiff_t plane = static_cast<ptrdiff_t>(rows) * blocks;
    int i = 0, j = 0, count = 0;
    for (ptrdiff_t done = 0; done < plane; done += count) {
      count = plane - done < kMergeTile ? static_cast<int>(plane - done) : kMergeTile;
      LoadTile(bands + done, count, plane, tile);
      for (int at = 0; at < count;) {
        int taken = blocks - j < kBlocks ? blocks - j : kBlocks;
        if (taken > count - at) taken = count - at;
        const int inside = width - 4 * j < 4 * taken ? width - 4 * j : 4 * taken;
        uint8_t cropped[4][kGroupBytes];
        uint8_t* to[4];
        for (int y = 0; y < 4; ++y) {
          const bool whole = inside == 4 * kBlocks && 4 * i + y < height;
          to[y] =
              whole ? image + (4 * i + y) * row_bytes + static_cast<ptrdiff_t>(j) * 12 : cropped[y];
        }
        if (inside > 0) MergeGroup(tile + at, to);
        for (int y = 0; y < 4; ++y) {
          if (inside <= 0 || to[y] != cropped[y] || 4 * i + y >= height) continue;
          std::memcpy(image + (4 * i + y) * row_bytes + static_cast<ptrdiff_t>(j) * 12, to[y],
                      static_cast<size_t>(inside) * 3);
        }
        at += taken;
        j += taken;
        if (j == blocks) j = 0, ++i;
      }
    }
  }
};

}  // namespace
}  // namespace fasdiff

#endif  // FASDIFF_CSRC_FREQUENCY_LOOPS_H_
