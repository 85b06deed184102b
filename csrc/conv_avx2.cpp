// Convolution layers for AVX2: int16 activations, pairs of products by vpmaddwd.
//
// Not vpmaddubsw, which takes bytes but saturates: 2 * 255 * 127 does not fit in 16 bits.
#include <immintrin.h>

#include "conv_loops.h"

namespace fasdiff {
namespace {

struct Avx2Unit {
  using Element = int16_t;
  using Sums = __m256i;
  using Weights = __m256i;

  static constexpr int kOffset = 0;
  static constexpr int kLanes = 8;
  static constexpr int kVectors = 4;
  static constexpr int kPositions = 2;

  static size_t WeightAt(size_t lane, size_t channel) { return 2 * lane + channel; }

  static bool PackChunk(const int16_t* from, int16_t* to, uint32_t* mask, int32_t*) {
    const __m256i zero = _mm256_setzero_si256();
    uint32_t zeros = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 16 * i));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16 * i), v);
      const __m256i is_zero = _mm256_cmpeq_epi32(v, zero);
      zeros |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(is_zero))) << (8 * i);
    }
    *mask = ~zeros & 0xFFFF;
    return true;
  }

  static Sums LoadBias(const int32_t* bias, int32_t) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bias));
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
    return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, x));
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

using Loops = ConvLoops<Avx2Unit>;

}  // namespace

const ConvKernel kConvWideAvx2 = {Loops::PackedBytes, Loops::Pack, Loops::ScratchBytes, Loops::Run};

}  // namespace fasdiff
