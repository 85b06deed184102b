// The frequency split for AVX-512 (F, BW): sixteen blocks at a time, four in each 128-bit lane.
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

  static __m512i LoadLanes(const uint8_t* at) {
    const auto lane = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 48 * i));
    };
    __m512i v = _mm512_castsi128_si512(lane(0));
    v = _mm512_inserti32x4(v, lane(1), 1);
    v = _mm512_inserti32x4(v, lane(2), 2);
    return _mm512_inserti32x4(v, lane(3), 3);
  }

  static __m512i InEachLane(__m128i v) { return _mm512_broadcast_i32x4(v); }

  static void LoadPixels(const uint8_t* at, Bytes* red, Bytes* green, Bytes* blue) {
    // One block of each lane: RGBRGBRGBRGB.... -> RRRRGGGGBBBB.
    const __m512i order =
        InEachLane(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const __m512i a = _mm512_shuffle_epi8(LoadLanes(at), order);
    const __m512i b = _mm512_shuffle_epi8(LoadLanes(at + 12), order);
    const __m512i c = _mm512_shuffle_epi8(LoadLanes(at + 24), order);
    const __m512i d = _mm512_shuffle_epi8(LoadLanes(at + 36), order);
    const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    *red = _mm512_unpacklo_epi64(ab, cd);
    *green = _mm512_unpackhi_epi64(ab, cd);
    *blue = _mm512_unpacklo_epi64(_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
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
  static Floats Load(const float* at) { return _mm512_loadu_ps(at); }
  static void Store(Floats v, float* at) { _mm512_storeu_ps(at, v); }

  // Rounded half to even. What does not fit, NaN included, becomes the smallest int32.
  static __m512i Round(Floats v) {
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(255.0f), v));
  }

  // Four vectors of int32 -> in each lane, the bytes of the first for four blocks, of the second..
  static __m512i Pack(Floats a, Floats b, Floats c, Floats d) {
    return _mm512_packus_epi16(_mm512_packs_epi32(Round(a), Round(b)),
                               _mm512_packs_epi32(Round(c), Round(d)));
  }

  static __m512i Blend(__m512i base, __m512i at1, __m512i at2) {
    return _mm512_mask_mov_epi32(_mm512_mask_mov_epi32(base, 0x2222, at1), 0x4444, at2);
  }

  // pixels is [column][colour]. Writes 192 bytes.
  static void StorePixels(const Floats pixels[4][3], uint8_t* to) {
    // Each holds a third of every block's twelve bytes; the shuffles gather a block's four bytes
    // and place the blocks so that blends finish the interleaving.
    const __m512i a = _mm512_shuffle_epi8(
        Pack(pixels[0][0], pixels[0][1], pixels[0][2], pixels[1][0]),
        InEachLane(_mm_setr_epi8(0, 4, 8, 12, 3, 7, 11, 15, 2, 6, 10, 14, 1, 5, 9, 13)));
    const __m512i b = _mm512_shuffle_epi8(
        Pack(pixels[1][1], pixels[1][2], pixels[2][0], pixels[2][1]),
        InEachLane(_mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, 3, 7, 11, 15, 2, 6, 10, 14)));
    const __m512i c = _mm512_shuffle_epi8(
        Pack(pixels[2][2], pixels[3][0], pixels[3][1], pixels[3][2]),
        InEachLane(_mm_setr_epi8(2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12, 3, 7, 11, 15)));
    // a: 0 3 2 1, b: 1 0 3 2, c: 2 1 0 3 -> a0 b0 c0 a1 | b1 c1 a2 b2 | c2 a3 b3 c3.
    const __m512i out[3] = {Blend(a, b, c), Blend(b, c, a), Blend(c, a, b)};
    for (int i = 0; i < 3; ++i) {
      const auto store = [&](int lane, __m128i v) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 48 * lane + 16 * i), v);
      };
      store(0, _mm512_castsi512_si128(out[i]));
      store(1, _mm512_extracti32x4_epi32(out[i], 1));
      store(2, _mm512_extracti32x4_epi32(out[i], 2));
      store(3, _mm512_extracti32x4_epi32(out[i], 3));
    }
  }
};

}  // namespace

const FrequencyKernel kFrequencyAvx512 = {"avx512", FrequencyLoops<Avx512Unit>::Split,
                                          FrequencyLoops<Avx512Unit>::Merge};

}  // namespace fasdiff
