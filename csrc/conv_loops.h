// The loops of a convolution layer, for any vector unit.
//
// Output channels lie along the vectors. A step takes one 32-bit word of a position's activations
// (two int16 or four int8 channels under one tap of the kernel), copies it to all lanes, multiplies
// it with the weights of that word and adds to every lane the sum of its two or four products. A
// few positions share the weights.
//
// Words that are zero at all of these positions are left out: contexts are mostly zeros at low
// rates, half of a checkerboard is zero by construction, and so is what lies outside of the image.
//
// A `Unit` has: Element, the type of an activation; kOffset, added to a weight to store it as a
// byte (a unit that multiplies unsigned weights with signed activations takes 128, and the sum of
// the activations times 128 comes off again); kLanes, output channels of a vector; kVectors, how
// many vectors of sums to keep at once, and kPositions, for how many positions; and the operations.
//
// Everything is in an unnamed namespace and nothing of the standard library is instantiated: each
// unit's source has its own compiler flags, and the linker must not put one's code in another's
// place.
#ifndef FASDIFF_CSRC_CONV_LOOPS_H_
#define FASDIFF_CSRC_CONV_LOOPS_H_

#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "conv_kernel.h"

namespace fasdiff {
namespace {

constexpr int kChunkBytes = 64;  // Activations are packed in chunks of 16 words.
constexpr int kChunkWords = 16;

// A word of activations that is not zero everywhere.
struct Step {
  uint32_t activation;  // Bytes from the position's first tap.
  uint32_t weights;     // Bytes from the first weight.
};

inline size_t RoundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

template <typename Unit>
struct ConvLoops {
  using Element = typename Unit::Element;
  using Sums = typename Unit::Sums;

  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(Element));
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(Element));
  static constexpr int kLanes = Unit::kLanes;
  static constexpr int kPositions = Unit::kPositions;
  static constexpr int kVectorBytes = 4 * kLanes;

  static int Words(const ConvShape& s) { return (s.cin + kPerWord - 1) / kPerWord; }
  static int Chunks(const ConvShape& s) { return (s.cin + kChunk - 1) / kChunk; }
  static int Vectors(const ConvShape& s) { return (s.cout + kLanes - 1) / kLanes; }
  static size_t PositionBytes(const ConvShape& s) {
    return static_cast<size_t>(Chunks(s)) * kChunkBytes;
  }
  // One bit a word, 64 at a time.
  static size_t MaskWords(const ConvShape& s) { return static_cast<size_t>((Chunks(s) + 3) / 4); }

  // Weights lie as [tap][word][vector][lane][channel of the word], in the unit's order within a
  // vector.
  static size_t PackedBytes(const ConvShape& s) {
    return static_cast<size_t>(s.k * s.k) * static_cast<size_t>(Words(s)) *
           static_cast<size_t>(Vectors(s)) * kVectorBytes;
  }

  static void Pack(const ConvShape& s, const int8_t* weight, void* packed) {
    Element* to = static_cast<Element*>(packed);
    const size_t per_vector = kVectorBytes / sizeof(Element);
    const size_t taps = static_cast<size_t>(s.k * s.k);
    const size_t words = static_cast<size_t>(Words(s)), vectors = static_cast<size_t>(Vectors(s));
    for (size_t o = 0; o < static_cast<size_t>(s.cout); ++o) {
      for (size_t c = 0; c < static_cast<size_t>(s.cin); ++c) {
        for (size_t tap = 0; tap < taps; ++tap) {
          const size_t vector = (tap * words + c / kPerWord) * vectors + o / kLanes;
          to[vector * per_vector + Unit::WeightAt(o % kLanes, c % kPerWord)] =
              static_cast<Element>(*weight++ + Unit::kOffset);
        }
      }
    }
  }

  // Where things are in the scratch memory.
  struct Layout {
    size_t count;     // Packed positions.
    size_t pitch;     // Packed positions of a row, when there are neighbours.
    size_t position;  // Bytes of one.
    size_t mask_words;
    size_t masks, sums, steps, bytes;  // Offsets in bytes, and the total.
  };

  // With neighbours: the whole image with a border of one position, so that no tap is special.
  // Without: the wanted positions alone.
  static Layout MakeLayout(const ConvShape& s, const ConvArea& area) {
    const size_t height = static_cast<size_t>(area.height), width = static_cast<size_t>(area.width);
    Layout l;
    l.pitch = width + 2;
    l.count = s.k == 1 ? height * width : (height + 2) * l.pitch;
    l.position = PositionBytes(s);
    l.mask_words = MaskWords(s);
    l.masks = l.count * l.position;
    l.sums = l.masks + RoundUp(l.count * l.mask_words * sizeof(uint64_t), kChunkBytes);
    l.steps = l.sums + RoundUp(l.count * sizeof(int32_t), kChunkBytes);
    const size_t max_steps = static_cast<size_t>(s.k * s.k) * static_cast<size_t>(Words(s));
    l.bytes = l.steps + max_steps * sizeof(Step);
    return l;
  }

  static size_t ScratchBytes(const ConvShape& s, const ConvArea& area) {
    return MakeLayout(s, area).bytes;
  }

  struct Packed {
    Layout layout;
    Element* activations;
    uint64_t* masks;
    int32_t* sums;
  };

  // Packs position `to`. False if an activation does not fit an Element.
  static bool PackPosition(const ConvShape& s, const int16_t* x, const Packed& p, size_t to) {
    Element* elements = p.activations + to * p.layout.position / sizeof(Element);
    uint64_t* masks = p.masks + to * p.layout.mask_words;
    const int chunks = Chunks(s);
    int32_t sum = 0;
    bool fits = true;
    for (int c = 0; c < chunks; ++c) {
      const int left = s.cin - c * kChunk;
      alignas(64) int16_t part[kChunk];
      const int16_t* from = x + c * kChunk;
      if (left < kChunk) {
        std::memset(part, 0, sizeof(part));
        std::memcpy(part, from, static_cast<size_t>(left) * sizeof(int16_t));
        from = part;
      }
      uint32_t mask = 0;
      fits = Unit::PackChunk(from, elements + c * kChunk, &mask, &sum) && fits;
      if (c % 4 == 0) masks[c / 4] = 0;
      masks[c / 4] |= uint64_t{mask} << (c % 4 * kChunkWords);
    }
    p.sums[to] = sum;
    return fits;
  }

  static void ZeroPositions(const Packed& p, size_t first, size_t count) {
    std::memset(p.activations + first * p.layout.position / sizeof(Element), 0,
                count * p.layout.position);
    std::memset(p.masks + first * p.layout.mask_words, 0,
                count * p.layout.mask_words * sizeof(uint64_t));
    std::memset(p.sums + first, 0, count * sizeof(int32_t));
  }

  // Without neighbours: the wanted positions, in order.
  static bool PackWanted(const ConvShape& s, const int16_t* x, int x_stride, const ConvArea& area,
                         const Packed& p) {
    bool fits = true;
    size_t to = 0;
    for (int i = area.first_row; i < area.height; i += area.row_step) {
      const int16_t* row = x + static_cast<ptrdiff_t>(i) * area.width * x_stride;
      for (int j = area.first_column[i % 2]; j < area.width; j += area.column_step) {
        fits = PackPosition(s, row + static_cast<ptrdiff_t>(j) * x_stride, p, to++) && fits;
      }
      if (!fits) return false;
    }
    return true;
  }

  // With neighbours: all positions and the border.
  static bool PackImage(const ConvShape& s, const int16_t* x, int x_stride, const ConvArea& area,
                        const Packed& p) {
    const size_t width = static_cast<size_t>(area.width), pitch = p.layout.pitch;
    bool fits = true;
    ZeroPositions(p, 0, pitch + 1);
    size_t to = pitch + 1;
    for (int i = 0; i < area.height; ++i) {
      for (size_t j = 0; j < width; ++j, x += x_stride) fits = PackPosition(s, x, p, to++) && fits;
      if (!fits) return false;
      // The last of this row and the first of the next.
      ZeroPositions(p, to, 2);
      to += 2;
    }
    ZeroPositions(p, to, pitch - 1);
    return true;
  }

  // The words to go through for a few positions, each given by its first tap.
  static int FindSteps(const ConvShape& s, const Packed& p, const size_t* first_tap, Step* steps) {
    const uint32_t words = static_cast<uint32_t>(Words(s));
    const uint32_t word_bytes = static_cast<uint32_t>(Vectors(s)) * kVectorBytes;
    int count = 0;
    for (int tap = 0; tap < s.k * s.k; ++tap) {
      const size_t offset =
          static_cast<size_t>(tap / s.k) * p.layout.pitch + static_cast<size_t>(tap % s.k);
      const uint64_t* masks = p.masks + offset * p.layout.mask_words;
      for (size_t m = 0; m < p.layout.mask_words; ++m) {
        uint64_t mask = 0;
        for (int n = 0; n < kPositions; ++n) mask |= masks[first_tap[n] * p.layout.mask_words + m];
        const uint32_t activation =
            static_cast<uint32_t>(offset * p.layout.position + m * 4 * kChunkBytes);
        const uint32_t word = static_cast<uint32_t>(tap) * words + static_cast<uint32_t>(m) * 64;
        for (; mask != 0; mask &= mask - 1) {
          const uint32_t bit = static_cast<uint32_t>(__builtin_ctzll(mask));
          steps[count].activation = activation + 4 * bit;
          steps[count].weights = (word + bit) * word_bytes;
          ++count;
        }
      }
    }
    return count;
  }

  // Sums of the activations under the kernel.
  static int32_t SumUnderKernel(const ConvShape& s, const Packed& p, size_t first_tap) {
    int32_t sum = 0;
    for (int row = 0; row < s.k; ++row) {
      const int32_t* sums = p.sums + first_tap + static_cast<size_t>(row) * p.layout.pitch;
      for (int column = 0; column < s.k; ++column) sum += sums[column];
    }
    return sum;
  }

  // kCount vectors of output channels from `vector` on, at a few positions.
  template <int kCount>
  static void Accumulate(const ConvShape& s, const char* packed, const int32_t* bias, int vector,
                         const char* const* at, const int32_t* correction, const Step* steps,
                         int num_steps, int wanted, int16_t* const* out) {
    Sums sums[kPositions][kCount];
    for (int n = 0; n < kPositions; ++n) {
      for (int v = 0; v < kCount; ++v) {
        sums[n][v] = Unit::LoadBias(bias + (vector + v) * kLanes, correction[n]);
      }
    }
    packed += static_cast<ptrdiff_t>(vector) * kVectorBytes;
    for (int i = 0; i < num_steps; ++i) {
      const char* from = packed + steps[i].weights;
      typename Unit::Weights weights[kCount];
      for (int v = 0; v < kCount; ++v) weights[v] = Unit::LoadWeights(from + v * kVectorBytes);
      for (int n = 0; n < kPositions; ++n) {
        const auto x = Unit::LoadWord(at[n] + steps[i].activation);
        for (int v = 0; v < kCount; ++v) sums[n][v] = Unit::MultiplyAdd(sums[n][v], weights[v], x);
      }
    }
    for (int n = 0; n < wanted; ++n) {
      for (int v = 0; v < kCount; ++v) {
        const int first = (vector + v) * kLanes;
        int16_t* to = out[n] + first;
        if (first + kLanes <= s.cout) {
          Unit::Requantise(sums[n][v], s.shift, s.lo, s.hi, to);
        } else {
          int16_t whole[kLanes];
          Unit::Requantise(sums[n][v], s.shift, s.lo, s.hi, whole);
          std::memcpy(to, whole, static_cast<size_t>(s.cout - first) * sizeof(int16_t));
        }
      }
    }
  }

  static bool Run(const ConvShape& s, const void* packed_weights, const int32_t* bias,
                  const int16_t* x, int x_stride, const ConvArea& area, int16_t* out,
                  int out_stride, void* scratch) {
    const Layout layout = MakeLayout(s, area);
    char* memory = static_cast<char*>(scratch);
    const Packed p = {layout, reinterpret_cast<Element*>(memory),
                      reinterpret_cast<uint64_t*>(memory + layout.masks),
                      reinterpret_cast<int32_t*>(memory + layout.sums)};
    Step* steps = reinterpret_cast<Step*>(memory + layout.steps);
    const bool fits =
        s.k == 1 ? PackWanted(s, x, x_stride, area, p) : PackImage(s, x, x_stride, area, p);
    if (!fits) return false;

    const char* weights = static_cast<const char*>(packed_weights);
    const int vectors = Vectors(s);
    size_t next = 0;  // Among the packed positions, when there are no neighbours.
    int i = area.first_row, j = area.first_column[i % 2];
    while (true) {
      // The next few positions; at the end, the rest repeats the first.
      size_t first_tap[kPositions];
      const char* at[kPositions];
      int16_t* to[kPositions];
      int32_t correction[kPositions];
      int wanted = 0;
      while (wanted < kPositions && i < area.height) {
        if (j >= area.width) {
          i += area.row_step;
          j = area.first_column[i % 2];
          continue;
        }
        first_tap[wanted] =
            s.k == 1 ? next++ : static_cast<size_t>(i) * layout.pitch + static_cast<size_t>(j);
        to[wanted++] = out + (static_cast<ptrdiff_t>(i) * area.width + j) * out_stride;
        j += area.column_step;
      }
      if (wanted == 0) return true;
      for (int n = 0; n < kPositions; ++n) {
        if (n >= wanted) first_tap[n] = first_tap[0];
        at[n] = memory + first_tap[n] * layout.position;
        correction[n] = Unit::kOffset * SumUnderKernel(s, p, first_tap[n]);
      }
      const int num_steps = FindSteps(s, p, first_tap, steps);
      int v = 0;
      for (; v + Unit::kVectors <= vectors; v += Unit::kVectors) {
        Accumulate<Unit::kVectors>(s, weights, bias, v, at, correction, steps, num_steps, wanted,
                                   to);
      }
      for (; v + 2 <= vectors; v += 2) {
        Accumulate<2>(s, weights, bias, v, at, correction, steps, num_steps, wanted, to);
      }
      if (v < vectors) {
        Accumulate<1>(s, weights, bias, v, at, correction, steps, num_steps, wanted, to);
      }
    }
  }
};

#ifdef __AVX2__
// What units with vectors of 256 bits have in common, whatever they multiply.
struct Operations256 {
  using Sums = __m256i;
  using Weights = __m256i;

  static constexpr int kLanes = 8;

  // One bit for each of the eight words that are not zero.
  static uint32_t WordsOf(__m256i v) {
    const __m256i is_zero = _mm256_cmpeq_epi32(v, _mm256_setzero_si256());
    return ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(is_zero))) & 0xFF;
  }

  static Sums LoadBias(const int32_t* bias, int32_t correction) {
    return _mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bias)),
                            _mm256_set1_epi32(correction));
  }
  static Weights LoadWeights(const char* at) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
  }
  static __m256i LoadWord(const char* at) {
    int32_t word;
    std::memcpy(&word, at, sizeof(word));
    return _mm256_set1_epi32(word);
  }

  // (sum + 2^(shift - 1)) >> shift without the addition that could overflow.
  static void Requantise(Sums sums, int shift, int lo, int hi, int16_t* out) {
    const __m256i bit = _mm256_and_si256(_mm256_sra_epi32(sums, _mm_cvtsi32_si128(shift - 1)),
                                         _mm256_set1_epi32(1));
    __m256i v = _mm256_add_epi32(_mm256_sra_epi32(sums, _mm_cvtsi32_si128(shift)), bit);
    v = _mm256_min_epi32(_mm256_max_epi32(v, _mm256_set1_epi32(lo)), _mm256_set1_epi32(hi));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }
};
#endif

}  // namespace
}  // namespace fasdiff

#endif  // FASDIFF_CSRC_CONV_LOOPS_H_
