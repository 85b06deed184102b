// Convolution layers for AVX2: int16 activations, pairs of products by vpmaddwd.
//
// Not vpmaddubsw, which takes bytes but saturates: 2 * 255 * 127 does not fit in 16 bits.
#include <immintrin.h>

#include "conv_loops.h"

namespace fasdiff {
namespace {

struct Avx2Unit : Operations256 {
  using Element = int16_t;

  static constexpr int kOffset = 0;
  static constexpr int kVectors = 4;
  static constexpr int kPositions = 2;

  static size_t WeightAt(size_t lane, size_t channel) { return 2 * lane + channel; }

  static bool PackChunk(const int16_t* from, int16_t* to, uint32_t* mask, int32_t*) {
    *mask = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 16 * i));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16 * i), v);
      *mask |= WordsOf(v) << (8 * i);
    }
    return true;
  }

  static Sums MultiplyAdd(Sums sums, Weights weights, __m256i x) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, x));
  }
};

using Loops = ConvLoops<Avx2Unit>;

}  // namespace

const ConvKernel kConvWideAvx2 = {Loops::PackedBytes, Loops::Pack, Loops::ScratchBytes, Loops::Run};

}  // namespace fasdiff
