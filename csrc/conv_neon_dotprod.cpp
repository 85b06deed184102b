// Convolution layers for aarch64 with dot products (Armv8.2): int8 activations, four products at a
// time by sdot, which multiplies signed bytes and adds in 32 bits.
#include <arm_neon.h>

#include "conv_loops.h"

namespace fasdiff {
namespace {

struct NeonDotprodUnit {
  using Element = int8_t;
  using Sums = int32x4_t;
  using Weights = int8x16_t;

  static constexpr int kOffset = 0;
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 4;
  static constexpr int kPositions = 4;

  static size_t WeightAt(size_t lane, size_t channel) { return 4 * lane + channel; }

  static bool PackChunk(const int16_t* from, int8_t* to, uint32_t* mask, int32_t*) {
    const uint32_t powers[4] = {1, 2, 4, 8};
    const uint32x4_t bits = vld1q_u32(powers);
    uint32_t nonzero = 0;
    int16x8_t lost = vdupq_n_s16(0);
    for (int i = 0; i < 4; ++i) {
      const int16x8_t a = vld1q_s16(from + 16 * i), b = vld1q_s16(from + 16 * i + 8);
      const int8x16_t v = vqmovn_high_s16(vqmovn_s16(a), b);
      vst1q_s8(to + 16 * i, v);
      lost = vorrq_s16(lost, veorq_s16(a, vmovl_s8(vget_low_s8(v))));
      lost = vorrq_s16(lost, veorq_s16(b, vmovl_high_s8(v)));
      const uint32x4_t words = vreinterpretq_u32_s8(v);
      nonzero |= vaddvq_u32(vandq_u32(vtstq_u32(words, words), bits)) << (4 * i);
    }
    *mask = nonzero;
    return vmaxvq_u16(vreinterpretq_u16_s16(lost)) == 0;
  }

  static Sums LoadBias(const int32_t* bias, int32_t) { return vld1q_s32(bias); }
  static Weights LoadWeights(const char* at) {
    return vld1q_s8(reinterpret_cast<const int8_t*>(at));
  }
  static int8x16_t LoadWord(const char* at) {
    int32_t word;
    std::memcpy(&word, at, sizeof(word));
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
  }
  static Sums MultiplyAdd(Sums sums, Weights weights, int8x16_t x) {
    return vdotq_s32(sums, weights, x);
  }

  // (sum + 2^(shift - 1)) >> shift without the addition that could overflow.
  static void Requantise(Sums sums, int shift, int lo, int hi, int16_t* out) {
    const int32x4_t bit = vandq_s32(vshlq_s32(sums, vdupq_n_s32(1 - shift)), vdupq_n_s32(1));
    int32x4_t v = vaddq_s32(vshlq_s32(sums, vdupq_n_s32(-shift)), bit);
    v = vminq_s32(vmaxq_s32(v, vdupq_n_s32(lo)), vdupq_n_s32(hi));
    vst1_s16(out, vmovn_s32(v));
  }
};

using Loops = ConvLoops<NeonDotprodUnit>;

}  // namespace

const ConvKernel kConvNarrowNeonDotprod = {Loops::PackedBytes, Loops::Pack, Loops::ScratchBytes,
                                           Loops::Run};

}  // namespace fasdiff
