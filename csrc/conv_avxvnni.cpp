// Convolution layers for AVX-VNNI: int8 activations, four products at a time by vpdpbusd.
//
// What conv_avx512vnni.cpp does, in vectors of half the size: for processors that have VNNI without
// AVX-512, as those of laptops do.
#include <immintrin.h>

#include "conv_loops.h"

namespace fasdiff {
namespace {

struct AvxVnniUnit : Operations256 {
  using Element = int8_t;

  static constexpr int kOffset = 128;
  static constexpr int kVectors = 2;
  static constexpr int kPositions = 4;

  static size_t WeightAt(size_t lane, size_t channel) { return 4 * lane + channel; }

  static __m256i Load(const int16_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }

  static bool PackChunk(const int16_t* from, int8_t* to, uint32_t* mask, int32_t* sum) {
    const __m256i one = _mm256_set1_epi8(1);
    __m256i same = _mm256_set1_epi8(-1), sums = _mm256_setzero_si256();
    *mask = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i a = Load(from + 32 * i), b = Load(from + 32 * i + 16);
      // Packing takes turns between the halves of a and of b.
      const __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xD8);
      const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v));
      const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1));
      same = _mm256_and_si256(
          same, _mm256_and_si256(_mm256_cmpeq_epi16(low, a), _mm256_cmpeq_epi16(high, b)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32 * i), v);
      *mask |= WordsOf(v) << (8 * i);
      sums = _mm256_dpbusd_avx_epi32(sums, one, v);
    }
    const __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    *sum += _mm_cvtsi128_si32(quarter) + _mm_extract_epi32(quarter, 1);
    return _mm256_movemask_epi8(same) == -1;
  }

  static Sums MultiplyAdd(Sums sums, Weights weights, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
  }
};

using Loops = ConvLoops<AvxVnniUnit>;

}  // namespace

const ConvKernel kConvNarrowAvxVnni = {Loops::PackedBytes, Loops::Pack, Loops::ScratchBytes,
                                       Loops::Run};

}  // namespace fasdiff
