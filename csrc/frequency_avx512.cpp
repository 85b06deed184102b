// The frequency split for AVX-512 (F, BW, VBMI): sixteen blocks at a time.
#include <immintrin.h>

#include "frequency_loops.h"

namespace fasdiff {
namespace {

struct Avx512Unit {
  using Bytes = __m512i;
  using Pairs = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  static constexpr int kBlocks = 16;

  static constexpr bool kWholeLines = true;
  static constexpr bool kStreams = true;

  // For each byte of three vectors where it comes from in three others: the first two are
  // addressed as one of 128 bytes, and the mask tells which come from the third.
  struct Order {
    alignas(64) uint8_t from[3][64];
    uint64_t third[3];
  };

  template <int kVector>
  static __m512i Gather(const Order& order, __m512i a, __m512i b, __m512i c) {
    const __m512i from = _mm512_load_si512(order.from[kVector]);
    const __m512i ab = _mm512_permutex2var_epi8(a, from, b);
    return _mm512_mask_permutexvar_epi8(ab, order.third[kVector], from, c);
  }

  // Red, green and blue of 64 pixels, out of 192 bytes.
  static constexpr Order ColoursOfPixels() {
    Order order = {};
    for (int colour = 0; colour < 3; ++colour) {
      for (int x = 0; x < 64; ++x) {
        const int from = 3 * x + colour;
        order.from[colour][x] = static_cast<uint8_t>(from % 128);
        if (from >= 128) order.third[colour] |= uint64_t{1} << x;
      }
    }
    return order;
  }

  // 192 bytes of pixels out of what StoreColumns packs: byte k of the twelve of a block lies in
  // vector k / 4, with those of the other blocks of its 128-bit lane.
  static constexpr Order PixelsOfPacked() {
    Order order = {};
    for (int to = 0; to < 192; ++to) {
      const int block = to / 12, k = to % 12;
      const int from = 64 * (k / 4) + 16 * (block / 4) + 4 * (k % 4) + block % 4;
      order.from[to / 64][to % 64] = static_cast<uint8_t>(from % 128);
      if (from >= 128) order.third[to / 64] |= uint64_t{1} << to % 64;
    }
    return order;
  }

  static void LoadPixels(const uint8_t* at, Bytes* red, Bytes* green, Bytes* blue) {
    static constexpr Order kOrder = ColoursOfPixels();
    const __m512i a = _mm512_loadu_si512(at);
    const __m512i b = _mm512_loadu_si512(at + 64);
    const __m512i c = _mm512_loadu_si512(at + 128);
    *red = Gather<0>(kOrder, a, b, c);
    *green = Gather<1>(kOrder, a, b, c);
    *blue = Gather<2>(kOrder, a, b, c);
  }

  static Pairs SumPairs(Bytes v) { return _mm512_maddubs_epi16(v, _mm512_set1_epi8(1)); }
  static Pairs DiffPairs(Bytes v) {
    return _mm512_maddubs_epi16(v, _mm512_set1_epi16(static_cast<int16_t>(0xFF01)));
  }
  static Pairs Plus(Pairs a, Pairs b) { return _mm512_add_epi16(a, b); }
  static Pairs Minus(Pairs a, Pairs b) { return _mm512_sub_epi16(a, b); }

  static Pairs LoadPairs(const int16_t* at) { return _mm512_loadu_si512(at); }
  static void StorePairs(Pairs v, int16_t* at) { _mm512_storeu_si512(at, v); }

  static Ints First(Pairs v) { return _mm512_madd_epi16(v, _mm512_set1_epi32(1)); }
  static Ints Second(Pairs v) { return _mm512_srai_epi32(v, 16); }
  static Ints Sum(Pairs v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }
  static Ints Diff(Pairs v) {
    return _mm512_madd_epi16(v, _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0001)));
  }
  static Ints Offset(Ints v, int offset) { return _mm512_add_epi32(v, _mm512_set1_epi32(offset)); }

  static Floats Times(Ints v, float factor) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(v), _mm512_set1_ps(factor));
  }
  static Floats Splat(float v) { return _mm512_set1_ps(v); }
  static Floats Scale(Floats v, float factor) { return _mm512_mul_ps(v, _mm512_set1_ps(factor)); }
  static Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats Sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  // One operation, and the same bits: twice b is exact.
  static Floats SubTwice(Floats a, Floats b) {
    return _mm512_fnmadd_ps(b, _mm512_set1_ps(2.0f), a);
  }
  static Floats Load(const float* at) { return _mm512_loadu_ps(at); }
  static void Store(Floats v, float* at) { _mm512_storeu_ps(at, v); }
  static void Stream(Floats v, float* at) { _mm512_stream_ps(at, v); }
  static void Fence() { _mm_sfence(); }

  // Rounded half to even. What does not fit, NaN included, becomes the smallest int32.
  static __m512i Round(Floats v) { return _mm512_cvtps_epi32(v); }
  static __m512i RoundBounded(Floats v) { return Round(_mm512_min_ps(_mm512_set1_ps(255.0f), v)); }

  // Two columns of pixels as int16, two vectors in each.
  struct Columns {
    __m512i pairs[3];
  };

  template <__m512i (*kRound)(Floats)>
  static Columns Pack(const Floats pixels[2][3]) {
    return {{_mm512_packs_epi32(kRound(pixels[0][0]), kRound(pixels[0][1])),
             _mm512_packs_epi32(kRound(pixels[0][2]), kRound(pixels[1][0])),
             _mm512_packs_epi32(kRound(pixels[1][1]), kRound(pixels[1][2]))}};
  }

  // pixels is [column][colour].
  static Columns PackColumns(const Floats pixels[2][3]) { return Pack<RoundBounded>(pixels); }
  static Columns PackUnbounded(const Floats pixels[2][3]) { return Pack<Round>(pixels); }

  // The lowest of what was packed without a bound: -32768 if it was 2^31 or more, which is white
  // and becomes the smallest int32, or as far below black.
  struct Lowest {
    __m512i pairs = _mm512_setzero_si512();

    void See(const Columns columns[2]) {
      for (int i = 0; i < 3; ++i) {
        const __m512i two = _mm512_min_epi16(columns[0].pairs[i], columns[1].pairs[i]);
        pairs = _mm512_min_epi16(pairs, two);
      }
    }
    bool MayBeWhite() const {
      return _mm512_cmpeq_epi16_mask(pairs, _mm512_set1_epi16(-32768)) != 0;
    }
  };

  // Writes 192 bytes.
  static void StoreColumns(const Columns columns[2], uint8_t* to) {
    static constexpr Order kOrder = PixelsOfPacked();
    const __m512i a = _mm512_packus_epi16(columns[0].pairs[0], columns[0].pairs[1]);
    const __m512i b = _mm512_packus_epi16(columns[0].pairs[2], columns[1].pairs[0]);
    const __m512i c = _mm512_packus_epi16(columns[1].pairs[1], columns[1].pairs[2]);
    _mm512_storeu_si512(to, Gather<0>(kOrder, a, b, c));
    _mm512_storeu_si512(to + 64, Gather<1>(kOrder, a, b, c));
    _mm512_storeu_si512(to + 128, Gather<2>(kOrder, a, b, c));
  }
};

}  // namespace

const FrequencyKernel kFrequencyAvx512 = {"avx512vbmi", FrequencyLoops<Avx512Unit>::Split,
                                          FrequencyLoops<Avx512Unit>::Merge};

}  // namespace fasdiff
