// Convolution layers for AVX-512 VNNI: int8 activations, four products at a time by vpdpbusd.
//
// The instruction multiplies unsigned bytes with signed ones. The weights are the unsigned operand,
// 128 too large, so that an activation of zero still adds nothing; the activations' sum times 128
// is taken off at the start. vpdpbusd adds in 32 bits without saturation (vpdpbusds would not).
#include <immintrin.h>

#include "conv_loops.h"

namespace fasdiff {
namespace {

struct Avx512VnniUnit {
  using Element = int8_t;
  using Sums = __m512i;
  using Weights = __m512i;

  static constexpr int kOffset = 128;
  static constexpr int kLanes = 16;
  static constexpr int kVectors = 4;
  static constexpr int kPositions = 4;

  static size_t WeightAt(size_t lane, size_t channel) { return 4 * lane + channel; }

  static bool PackChunk(const int16_t* from, int8_t* to, uint32_t* mask, int32_t* sum) {
    const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + 32);
    const __m256i low = _mm512_cvtsepi16_epi8(a), high = _mm512_cvtsepi16_epi8(b);
    const __mmask32 same = _mm512_cmpeq_epi16_mask(_mm512_cvtepi8_epi16(low), a) &
                           _mm512_cmpeq_epi16_mask(_mm512_cvtepi8_epi16(high), b);
    const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    _mm512_store_si512(to, v);
    *mask = _mm512_test_epi32_mask(v, v);
    *sum += _mm512_reduce_add_epi32(
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), v));
    return same == 0xFFFFFFFFu;
  }

  static Sums LoadBias(const int32_t* bias, int32_t correction) {
    return _mm512_sub_epi32(_mm512_loadu_si512(bias), _mm512_set1_epi32(correction));
  }
  static Weights LoadWeights(const char* at) { return _mm512_load_si512(at); }
  static __m512i LoadWord(const char* at) {
    int32_t word;
    std::memcpy(&word, at, sizeof(word));
    return _mm512_set1_epi32(word);
  }
  static Sums MultiplyAdd(Sums sums, Weights weights, __m512i x) {
    return _mm512_dpbusd_epi32(sums, weights, x);
  }

  // (sum + 2^(shift - 1)) >> shift without the addition that could overflow.
  static void Requantise(Sums sums, int shift, int lo, int hi, int16_t* out) {
    const __m512i bit = _mm512_and_si512(_mm512_sra_epi32(sums, _mm_cvtsi32_si128(shift - 1)),
                                         _mm512_set1_epi32(1));
    __m512i v = _mm512_add_epi32(_mm512_sra_epi32(sums, _mm_cvtsi32_si128(shift)), bit);
    v = _mm512_min_epi32(_mm512_max_epi32(v, _mm512_set1_epi32(lo)), _mm512_set1_epi32(hi));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(v));
  }
};

using Loops = ConvLoops<Avx512VnniUnit>;

}  // namespace

const ConvKernel kConvNarrowAvx512Vnni = {Loops::PackedBytes, Loops::Pack, Loops::ScratchBytes,
                                          Loops::Run};

}  // namespace fasdiff
