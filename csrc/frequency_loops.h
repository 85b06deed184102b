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
#include "inline.h"

namespace fasdiff {
namespace {

constexpr int kBandCount = 48;
constexpr int kLevel1 = 12;        // The first channel of level 1.
constexpr size_t kLineBytes = 64;  // Of a cache.
// Addresses that are a multiple of so many bytes apart belong into the same set of most first-level
// caches, where 8 to 12 lines have room.
constexpr size_t kSetsBytes = 4096;
// Bands of so many blocks, 6 MiB, are written past the caches where the unit can: fetching what
// will be written over takes as long as writing it.
constexpr ptrdiff_t kStreamedPlane = 1 << 15;

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
  using Lowest = typename Unit::Lowest;

  static constexpr int kBlocks = Unit::kBlocks;
  static_assert(16 % kBlocks == 0, "planes have a multiple of 16 blocks");
  static constexpr int kGroupBytes = 12 * kBlocks;
  static constexpr int kReadBytes = kGroupBytes + 4;  // What LoadPixels touches.

  // Between pixels and bands lies a tile: so many blocks in the order of a band's plane, crossing
  // from row to row. The 48 planes are then read and written in runs of a tile. Touched block by
  // block, planes whose size is a power of two would all compete for the same few places in the
  // first-level cache. Merge does without where a group fills whole lines (Unit::kWholeLines): it
  // reads each of them once.
  static constexpr int kSplitTile = 256;
  static constexpr int kStreamedTile = 64;  // Short turns of reading and of writing memory.
  static constexpr int kMergeTile = Unit::kWholeLines ? 8 * kBlocks : 64;
  static constexpr int kMergeGroups = kMergeTile / kBlocks;
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
    const size_t past = reinterpret_cast<uintptr_t>(to) % kLineBytes / sizeof(float);
    if (past == 0) {
      for (int j = 0; j < count; j += kBlocks) store(j);
      return;
    }
    store(0);
    for (int j = static_cast<int>(kLineBytes / sizeof(float) - past) % kBlocks;
         j + kBlocks <= count; j += kBlocks) {
      store(j);
    }
    store(count - kBlocks);
  }

  template <bool kStream>
  static void Put(Floats v, float* at) {
    if constexpr (kStream && Unit::kStreams) {
      Unit::Stream(v, at);
    } else {
      Unit::Store(v, at);
    }
  }

  // A multiple of kBlocks of the tile's blocks -> their bands. Streamed, `bands` is a cache line's.
  template <bool kStream>
  static void StoreTile(const int16_t* tile, int count, ptrdiff_t plane, float* bands) {
    for (int dy = 0; dy < 2; ++dy) {
      for (int c = 0; c < 3; ++c) {
        for (int band = 0; band < 3; ++band, tile += kPairStride) {
          float* to = bands + Level1Channel(band, c, dy, 0) * plane;
          ForAligned(to, count, [&](int j) {
            const Pairs v = Unit::LoadPairs(tile + 2 * j);
            Put<kStream>(Unit::Times(Unit::First(v), kSplit1[c]), to + j);
            Put<kStream>(Unit::Times(Unit::Second(v), kSplit1[c]), to + plane + j);
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
          Put<kStream>(Unit::Times(Unit::Offset(Unit::Sum(v), -centre), kSplit2[c]), to + j);
          Put<kStream>(Unit::Times(Unit::Diff(v), kSplit2[c]), to + 3 * plane + j);
        });
      }
    }
  }

  // Copies pixels of a row from `column` on, and reflects those that the row does not have.
  static void Pad(const uint8_t* row, int width, int column, int count, uint8_t* to) {
    const int left = width - column;
    const int inside = left < 0 ? 0 : (left < count ? left : count);
    if (inside > 0) {
      std::memcpy(to, row + static_cast<ptrdiff_t>(column) * 3, static_cast<size_t>(inside) * 3);
    }
    for (int x = inside; x < count; ++x) {
      std::memcpy(to + 3 * x, row + static_cast<ptrdiff_t>(Reflect(column + x, width)) * 3, 3);
    }
  }

  static void Split(const uint8_t* image, int height, int width, int rows, int blocks,
                    float* bands) {
    alignas(kLineBytes) int16_t tile[kNumPairs * kPairStride];
    uint8_t padded[4][kReadBytes] = {};
    const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(width) * 3;
    const uint8_t* end = image + height * row_bytes;
    const ptrdiff_t plane = static_cast<ptrdiff_t>(rows) * blocks;
    const bool stream = Unit::kStreams && plane >= kStreamedPlane &&
                        reinterpret_cast<uintptr_t>(bands) % kLineBytes == 0;
    const int longest = stream ? kStreamedTile : kSplitTile;
    int i = 0, j = 0;  // Row and column of the next block.
    const uint8_t* row[4];
    const auto find_rows = [&] {
      for (int y = 0; y < 4; ++y) row[y] = image + Reflect(4 * i + y, height) * row_bytes;
    };
    find_rows();
    int count;
    for (ptrdiff_t done = 0; done < plane; done += count) {
      count = plane - done < longest ? static_cast<int>(plane - done) : longest;
      for (int first = 0; first < count; first += kBlocks) {
        const ptrdiff_t offset = static_cast<ptrdiff_t>(j) * 12;
        const uint8_t* from[4];
        bool whole = 4 * (j + kBlocks) <= width;
        for (int y = 0; y < 4; ++y) {
          from[y] = row[y] + offset;
          whole = whole && end - row[y] >= offset + kReadBytes;
        }
        if (whole) {
          j += kBlocks;
        } else {
          // The group ends after its row, or reaches into the next rows of blocks.
          for (int at = 0; at < kBlocks;) {
            const int taken = blocks - j < kBlocks - at ? blocks - j : kBlocks - at;
            for (int y = 0; y < 4; ++y) Pad(row[y], width, 4 * j, 4 * taken, padded[y] + 12 * at);
            at += taken;
            j += taken;
            if (j == blocks && at < kBlocks) j = 0, ++i, find_rows();
          }
          for (int y = 0; y < 4; ++y) from[y] = padded[y];
        }
        SplitGroup(from, tile + 2 * first);
        if (j == blocks) j = 0, ++i, find_rows();
      }
      if (stream) {
        StoreTile<true>(tile, count, plane, bands + done);
      } else {
        StoreTile<false>(tile, count, plane, bands + done);
      }
    }
    if constexpr (Unit::kStreams) {
      if (stream) Unit::Fence();
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

  template <int kChannel>
  static Floats LoadBand(const float* from, ptrdiff_t plane) {
    constexpr float kFactor =
        kChannel >= kLevel1 ? kMerge1[kChannel % 12 / 4] : kMerge2[kChannel % 3];
    return Unit::Scale(Unit::Load(from + kChannel * plane), kFactor);
  }

  template <int kColour>
  static void MergeLevel2(const float* from, ptrdiff_t plane, Floats ll[2][2]) {
    Floats ll2 = LoadBand<kColour>(from, plane);
    // Every pixel of a block takes its mid-grey from here.
    if (kColour == 0) ll2 = Unit::Add(ll2, Unit::Splat(kMidGrey));
    InverseHaar(ll2, LoadBand<3 + kColour>(from, plane), LoadBand<6 + kColour>(from, plane),
                LoadBand<9 + kColour>(from, plane), ll);
  }

  template <int kColour, int kDy, int kDx>
  static void MergeLevel1(const float* from, ptrdiff_t plane, Floats ll, Floats out[2][2]) {
    InverseHaar(ll, LoadBand<Level1Channel(0, kColour, kDy, kDx)>(from, plane),
                LoadBand<Level1Channel(1, kColour, kDy, kDx)>(from, plane),
                LoadBand<Level1Channel(2, kColour, kDy, kDx)>(from, plane), out);
  }

  static void ToPixel(Floats grey, Floats red_blue, Floats green, Floats rgb[3]) {
    const Floats sum = Unit::Add(grey, green);
    rgb[0] = Unit::Add(sum, red_blue);
    rgb[1] = Unit::SubTwice(grey, green);
    rgb[2] = Unit::Sub(sum, red_blue);
  }

  // Two rows and two columns of each block of a group, packed at once, since there are no registers
  // for the floats of more. `ll` is of the colours.
  template <bool kBounded, int kDy, int kDx>
  static FASDIFF_INLINE void MergeQuarter(const float* from, ptrdiff_t plane, Floats ll0,
                                          Floats ll1, Floats ll2, typename Unit::Columns* upper,
                                          typename Unit::Columns* lower) {
    Floats colours[3][2][2];
    MergeLevel1<0, kDy, kDx>(from, plane, ll0, colours[0]);
    MergeLevel1<1, kDy, kDx>(from, plane, ll1, colours[1]);
    MergeLevel1<2, kDy, kDx>(from, plane, ll2, colours[2]);
    for (int y = 0; y < 2; ++y) {
      Floats pixels[2][3];  // [column][colour].
      for (int x = 0; x < 2; ++x) {
        ToPixel(colours[0][y][x], colours[1][y][x], colours[2][y][x], pixels[x]);
      }
      *(y == 0 ? upper : lower) =
          kBounded ? Unit::PackColumns(pixels) : Unit::PackUnbounded(pixels);
    }
  }

  // A group of blocks from its planes to pixels, without a tile.
  template <bool kBounded, int kDy>
  static FASDIFF_INLINE void MergeHalf(const float* from, ptrdiff_t plane, const Floats ll[3][2][2],
                                       uint8_t* const rows[4], Lowest* lowest) {
    typename Unit::Columns upper[2], lower[2];
    MergeQuarter<kBounded, kDy, 0>(from, plane, ll[0][kDy][0], ll[1][kDy][0], ll[2][kDy][0], upper,
                                   lower);
    MergeQuarter<kBounded, kDy, 1>(from, plane, ll[0][kDy][1], ll[1][kDy][1], ll[2][kDy][1],
                                   upper + 1, lower + 1);
    if (!kBounded) lowest->See(upper), lowest->See(lower);
    Unit::StoreColumns(upper, rows[2 * kDy]);
    Unit::StoreColumns(lower, rows[2 * kDy + 1]);
  }

  template <bool kBounded>
  static FASDIFF_INLINE void MergeGroup(const float* from, ptrdiff_t plane, uint8_t* const rows[4],
                                        Lowest* lowest) {
    Floats ll[3][2][2];
    MergeLevel2<0>(from, plane, ll[0]);
    MergeLevel2<1>(from, plane, ll[1]);
    MergeLevel2<2>(from, plane, ll[2]);
    MergeHalf<kBounded, 0>(from, plane, ll, rows, lowest);
    MergeHalf<kBounded, 1>(from, plane, ll, rows, lowest);
  }

  // Groups with pixels that are 2^31 or more, which rounding by itself gets wrong.
  static void MergeBounded(const float* from, ptrdiff_t plane, int groups,
                           uint8_t* const rows[][4]) {
    for (int group = 0; group < groups; ++group) {
      MergeGroup<true>(from + group * kBlocks, plane, rows[group], nullptr);
    }
  }

  // The same for some groups in turns: level 2 of each, then a quarter of each. Where the lines of
  // all bands of a group belong into one set of the first-level cache, one can only come when
  // another has gone; so those that are on their way are of several groups. In between lie:
  struct Turns {
    alignas(kLineBytes) float ll[kMergeGroups][12][kBlocks];
    struct {
      typename Unit::Columns upper, lower;
    } left[kMergeGroups];  // Columns 0 and 1 of each block.
  };

  template <int kColour>
  static void TurnLevel2(const float* from, ptrdiff_t plane, Turns* turns) {
    for (int group = 0; group < kMergeGroups; ++group) {
      Floats ll[2][2];
      MergeLevel2<kColour>(from + group * kBlocks, plane, ll);
      for (int k = 0; k < 4; ++k) {
        Unit::Store(ll[k / 2][k % 2], turns->ll[group][4 * kColour + k]);
      }
    }
  }

  template <int kDy, int kDx>
  static FASDIFF_INLINE void TurnQuarter(const float* from, ptrdiff_t plane,
                                         const float (*ll)[kBlocks], typename Unit::Columns* upper,
                                         typename Unit::Columns* lower) {
    ll += 2 * kDy + kDx;
    MergeQuarter<false, kDy, kDx>(from, plane, Unit::Load(ll[0]), Unit::Load(ll[4]),
                                  Unit::Load(ll[8]), upper, lower);
  }

  template <int kDy>
  static void TurnHalf(const float* from, ptrdiff_t plane, uint8_t* const rows[][4], Turns* turns,
                       Lowest* lowest) {
    for (int group = 0; group < kMergeGroups; ++group) {
      TurnQuarter<kDy, 0>(from + group * kBlocks, plane, turns->ll[group],
                          &turns->left[group].upper, &turns->left[group].lower);
    }
    for (int group = 0; group < kMergeGroups; ++group) {
      typename Unit::Columns upper[2] = {turns->left[group].upper, {}};
      typename Unit::Columns lower[2] = {turns->left[group].lower, {}};
      TurnQuarter<kDy, 1>(from + group * kBlocks, plane, turns->ll[group], upper + 1, lower + 1);
      lowest->See(upper);
      lowest->See(lower);
      Unit::StoreColumns(upper, rows[group][2 * kDy]);
      Unit::StoreColumns(lower, rows[group][2 * kDy + 1]);
    }
  }

  static FASDIFF_INLINE void MergeInTurns(const float* from, ptrdiff_t plane,
                                          uint8_t* const rows[][4], Lowest* lowest) {
    Turns turns;
    TurnLevel2<0>(from, plane, &turns);
    TurnLevel2<1>(from, plane, &turns);
    TurnLevel2<2>(from, plane, &turns);
    TurnHalf<0>(from, plane, rows, &turns, lowest);
    TurnHalf<1>(from, plane, rows, &turns, lowest);
  }

  // Or with a tile between, of one colour after the other: its rows are 16 * colour +
  // 4 * y + x of a pixel of the block.
  template <int kColour, int kDy, int kDx>
  static void FillQuarter(const float* from, ptrdiff_t plane, Floats ll, float* tile) {
    Floats pixels[2][2];
    MergeLevel1<kColour, kDy, kDx>(from, plane, ll, pixels);
    float* to = tile + (16 * kColour + 8 * kDy + 2 * kDx) * kFloatStride;
    Unit::Store(pixels[0][0], to);
    Unit::Store(pixels[0][1], to + kFloatStride);
    Unit::Store(pixels[1][0], to + 4 * kFloatStride);
    Unit::Store(pixels[1][1], to + 5 * kFloatStride);
  }

  template <int kColour>
  static void FillTile(const float* bands, int count, ptrdiff_t plane, float* tile) {
    for (int j = 0; j < count; j += kBlocks) {
      Floats ll[2][2];
      MergeLevel2<kColour>(bands + j, plane, ll);
      FillQuarter<kColour, 0, 0>(bands + j, plane, ll[0][0], tile + j);
      FillQuarter<kColour, 0, 1>(bands + j, plane, ll[0][1], tile + j);
      FillQuarter<kColour, 1, 0>(bands + j, plane, ll[1][0], tile + j);
      FillQuarter<kColour, 1, 1>(bands + j, plane, ll[1][1], tile + j);
    }
  }

  static void MergeTile(const float* tile, uint8_t* const rows[4]) {
    for (int y = 0; y < 4; ++y) {
      typename Unit::Columns columns[2];
      for (int pair = 0; pair < 2; ++pair) {
        Floats pixels[2][3];
        for (int x = 0; x < 2; ++x) {
          const float* at = tile + (4 * y + 2 * pair + x) * kFloatStride;
          ToPixel(Unit::Load(at), Unit::Load(at + 16 * kFloatStride),
                  Unit::Load(at + 32 * kFloatStride), pixels[x]);
        }
        columns[pair] = Unit::PackColumns(pixels);
      }
      Unit::StoreColumns(columns, rows[y]);
    }
  }

  static void MergeTiled(const float* from, ptrdiff_t plane, int groups, uint8_t* const rows[][4]) {
    alignas(kLineBytes) float tile[kBandCount * kFloatStride];
    FillTile<0>(from, groups * kBlocks, plane, tile);
    FillTile<1>(from, groups * kBlocks, plane, tile);
    FillTile<2>(from, groups * kBlocks, plane, tile);
    for (int group = 0; group < groups; ++group) MergeTile(tile + group * kBlocks, rows[group]);
  }

  // Groups that follow one another in their planes, kMost or the last ones.
  template <int kMost>
  static void MergeGroups(const float* from, ptrdiff_t plane, int groups,
                          uint8_t* const rows[][4]) {
    if constexpr (!Unit::kWholeLines) {
      MergeTiled(from, plane, groups, rows);
    } else {
      Lowest lowest;
      if (kMost > 1 && groups == kMost) {
        MergeInTurns(from, plane, rows, &lowest);
      } else {
        for (int group = 0; group < groups; ++group) {
          MergeGroup<false>(from + group * kBlocks, plane, rows[group], &lowest);
        }
      }
      if (lowest.MayBeWhite()) MergeBounded(from, plane, groups, rows);
    }
  }

  // Row and column of a block.
  struct Position {
    int i, j;

    void MoveBy(int count, int blocks) {
      for (j += count; j >= blocks; j -= blocks) ++i;
    }
  };

  // A group's pixels, four rows of them, into an image whose edge or whose next row of blocks they
  // reach.
  static void Place(const uint8_t (*pixels)[kGroupBytes], Position at, int blocks, int height,
                    int width, uint8_t* image) {
    for (int block = 0; block < kBlocks;) {
      const int taken = blocks - at.j < kBlocks - block ? blocks - at.j : kBlocks - block;
      const int inside = width - 4 * at.j < 4 * taken ? width - 4 * at.j : 4 * taken;
      for (int y = 0; y < 4 && 4 * at.i + y < height && inside > 0; ++y) {
        std::memcpy(image + (static_cast<ptrdiff_t>(4 * at.i + y) * width + 4 * at.j) * 3,
                    pixels[y] + 12 * block, static_cast<size_t>(inside) * 3);
      }
      block += taken;
      at.MoveBy(taken, blocks);
    }
  }

  template <int kMost>
  static void MergeBy(const float* bands, ptrdiff_t plane, int rows, int blocks, int height,
                      int width, uint8_t* image) {
    uint8_t apart[kMost][4][kGroupBytes];
    const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(width) * 3;
    const ptrdiff_t all = static_cast<ptrdiff_t>(rows) * blocks / kBlocks;
    Position next = {0, 0};
    for (ptrdiff_t done = 0; done < all; done += kMost) {
      const int groups = kMost == 1 || all - done >= kMost ? kMost : static_cast<int>(all - done);
      uint8_t* to[kMost][4];
      Position at = next;
      for (int group = 0; group < groups; ++group, next.MoveBy(kBlocks, blocks)) {
        const int right = 4 * (next.j + kBlocks);
        const bool whole = right <= 4 * blocks && right <= width && 4 * next.i + 4 <= height;
        for (int y = 0; y < 4; ++y) {
          to[group][y] =
              whole ? image + (4 * next.i + y) * row_bytes + next.j * 12 : apart[group][y];
        }
      }
      MergeGroups<kMost>(bands + done * kBlocks, plane, groups, to);
      for (int group = 0; group < groups; ++group, at.MoveBy(kBlocks, blocks)) {
        if (to[group][0] == apart[group][0]) {
          Place(apart[group], at, blocks, height, width, image);
        }
      }
    }
  }

  static void Merge(const float* bands, ptrdiff_t plane, int rows, int blocks, int height,
                    int width, uint8_t* image) {
    const bool compete = plane * sizeof(float) % kSetsBytes == 0 && plane < kStreamedPlane;
    if (!Unit::kWholeLines || compete) {
      MergeBy<kMergeGroups>(bands, plane, rows, blocks, height, width, image);
    } else {
      MergeBy<1>(bands, plane, rows, blocks, height, width, image);
    }
  }
};

}  // namespace
}  // namespace fasdiff

#endif  // FASDIFF_CSRC_FREQUENCY_LOOPS_H_
