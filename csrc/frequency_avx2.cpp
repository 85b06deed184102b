// The frequency split for AVX2: eight blocks at a time, four in each 128-bit half.
#include <immintrin.h>

#include "frequency_loops.h"

namespace fasdiff {
namespace {

struct Avx2Unit {
  using Bytes = __m256i;
  using Pairs = __m256i;
  using Ints = __m256i;
  using Floats = __m256;

  static constexpr int kBlocks = 8;
  static constexpr bool kWholeLines = false;
  static constexpr bool kStreams = false;

  static __m256i LoadHalves(const uint8_t* at) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 48));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }

  static void LoadPixels(const uint8_t* at, Bytes* red, Bytes* green, Bytes* blue) {
    // One block of each half: RGBRGBRGBRGB.... -> RRRRGGGGBBBB.
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const __m256i a = _mm256_shuffle_epi8(LoadHalves(at), order);
    const __m256i b = _mm256_shuffle_epi8(LoadHalves(at + 12), order);
    const __m256i c = _mm256_shuffle_epi8(LoadHalves(at + 24), order);
    const __m256i d = _mm256_shuffle_epi8(LoadHalves(at + 36), order);
    const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    *red = _mm256_unpacklo_epi64(ab, cd);
    *green = _mm256_unpackhi_epi64(ab, cd);
    *blue = _mm256_unpacklo_epi64(_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
  }

  static Pairs SumPairs(Bytes v) { return _mm256_maddubs_epi16(v, _mm256_set1_epi8(1)); }
  static Pairs DiffPairs(Bytes v) {
    return _mm256_maddubs_epi16(v, _mm256_set1_epi16(static_cast<int16_t>(0xFF01)));
  }
  static Pairs Plus(Pairs a, Pairs b) { return _mm256_add_epi16(a, b); }
  static Pairs Minus(Pairs a, Pairs b) { return _mm256_sub_epi16(a, b); }

  static Pairs LoadPairs(const int16_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static void StorePairs(Pairs v, int16_t* at) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), v);
  }

  static Ints First(Pairs v) { return _mm256_madd_epi16(v, _mm256_set1_epi32(1)); }
  static Ints Second(Pairs v) { return _mm256_srai_epi32(v, 16); }
  static Ints Sum(Pairs v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
  static Ints Diff(Pairs v) {
    return _mm256_madd_epi16(v, _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0001)));
  }
  static Ints Offset(Ints v, int offset) { return _mm256_add_epi32(v, _mm256_set1_epi32(offset)); }

  static Floats Times(Ints v, float factor) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_set1_ps(factor));
  }
  static Floats Splat(float v) { return _mm256_set1_ps(v); }
  static Floats Scale(Floats v, float factor) { return _mm256_mul_ps(v, _mm256_set1_ps(factor)); }
  static Floats Add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats Sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats SubTwice(Floats a, Floats b) { return Sub(a, Add(b, b)); }
  static Floats Load(const float* at) { return _mm256_loadu_ps(at); }
  static void Store(Floats v, float* at) { _mm256_storeu_ps(at, v); }

  // Rounded half to even. What does not fit, NaN included, becomes the smallest int32.
  static __m256i Round(Floats v) {
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(255.0f), v));
  }

  // Two columns of pixels as int16, two vectors in each.
  struct Columns {
    __m256i pairs[3];
  };

  struct Lowest {};  // Bounds every pixel.

  // pixels is [column][colour].
  static Columns PackColumns(const Floats pixels[2][3]) {
    return {{_mm256_packs_epi32(Round(pixels[0][0]), Round(pixels[0][1])),
             _mm256_packs_epi32(Round(pixels[0][2]), Round(pixels[1][0])),
             _mm256_packs_epi32(Round(pixels[1][1]), Round(pixels[1][2]))}};
  }

  // Writes 96 bytes.
  static void StoreColumns(const Columns columns[2], uint8_t* to) {
    // Each holds a third of every block's twelve bytes; the shuffles gather a block's four bytes
    // and place the blocks so that blends finish the interleaving.
    const __m256i a =
        _mm256_shuffle_epi8(_mm256_packus_epi16(columns[0].pairs[0], columns[0].pairs[1]),
                            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 3, 7, 11, 15, 2,
                                                                      6, 10, 14, 1, 5, 9, 13)));
    const __m256i b =
        _mm256_shuffle_epi8(_mm256_packus_epi16(columns[0].pairs[2], columns[1].pairs[0]),
                            _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, 3,
                                                                      7, 11, 15, 2, 6, 10, 14)));
    const __m256i c =
        _mm256_shuffle_epi8(_mm256_packus_epi16(columns[1].pairs[1], columns[1].pairs[2]),
                            _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 6, 10, 14, 1, 5, 9, 13, 0,
                                                                      4, 8, 12, 3, 7, 11, 15)));
    // a: 0 3 2 1, b: 1 0 3 2, c: 2 1 0 3 -> a0 b0 c0 a1 | b1 c1 a2 b2 | c2 a3 b3 c3.
    __m256i out[3];
    out[0] = _mm256_blend_epi32(_mm256_blend_epi32(a, b, 0x22), c, 0x44);
    out[1] = _mm256_blend_epi32(_mm256_blend_epi32(b, c, 0x22), a, 0x44);
    out[2] = _mm256_blend_epi32(_mm256_blend_epi32(c, a, 0x22), b, 0x44);
    for (int i = 0; i < 3; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * i), _mm256_castsi256_si128(out[i]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 48 + 16 * i),
                       _mm256_extracti128_si256(out[i], 1));
    }
  }
};

}  // namespace

const FrequencyKernel kFrequencyAvx2 = {"avx2", FrequencyLoops<Avx2Unit>::Split,
                                        FrequencyLoops<Avx2Unit>::Merge};

}  // namespace fasdiff
