// Convolution layers for AVX-VNNI: int8 activations, four products at a time by vpdpbusd.
//
// What conv_avx512vnni.cpp does, in vectors of half the size: for processors that have VNNI without
// AVX-512, as those of laptops do.
#include <immintrin.h>

#include "conv_loops.h"

namespace fasdiff {
namespace {

struct AvxVnniUnit {
  using Element = int8_t;
  using Sums = __m256i;
  using Weights = __m256i;

  static constexpr int kOffset = 128;
  static constexpr int kLanes = 8;
  static constexpr int kVectors = 2;
  static constexpr int kPositions = 4;

  static size_t WeightAt(size_t lane, size_t channel) { return 4 * lane + channel; }

  static __m256i Load(const int16_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }

  static bool PackChunk(const int16_t* from, int8_t* to, uint32_t* mask, int32_t* sum) {
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi8(1);
    __m256i same = _mm256_set1_epi8(-1), sums = zero;
    uint32_t zeros = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i a = Load(from + 32 * i), b = Load(from + 32 * i + 16);
      // Packing takes turns between the halves of a and of b.
      const __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xD8);
      const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v));
      const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1));
      same = _mm256_and_si256(
          same, _mm256_and_si256(_mm256_cmpeq_epi16(low, a), _mm256_cmpeq_epi16(high, b)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32 * i), v);
      const __m256i is_zero = _mm256_cmpeq_epi32(v, zero);
      zeros |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(is_zero))) << (8 * i);
      sums = _mm256_dpbusd_avx_epi32(sums, one, v);
    }
    *mask = ~zeros & 0xFFFF;
    const __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    *sum += _mm_cvtsi128_si32(quarter) + _mm_extract_epi32(quarter, 1);
    return _mm256_movemask_epi8(same) == -1;
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
  static Sums MultiplyAdd(Sums sums, Weights weights, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
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

using Loops = ConvLoops<AvxVnniUnit>;

}  // namespace

const ConvKernel kConvNarrowAvxVnni = {Loops::PackedBytes, Loops::Pack, Loops::ScratchBytes,
                                       Loops::Run};

}  // namespace fasdiff
