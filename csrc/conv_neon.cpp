// Convolution layers for every aarch64: int16 activations, widening multiply-adds.
#include <arm_neon.h>

#include "conv_loops.h"

namespace fasdiff {
namespace {

struct NeonUnit {
  using Element = int16_t;
  using Sums = int32x4_t;
  using Weights = int16x8_t;

  static constexpr int kOffset = 0;
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 4;
  static constexpr int kPositions = 4;

  // The first channel of the four outputs, then the second.
  static size_t WeightAt(size_t lane, size_t channel) { return 4 * channel + lane; }

  static bool PackChunk(const int16_t* from, int16_t* to, uint32_t* mask, int32_t*) {
    const uint32_t powers[4] = {1, 2, 4, 8};
    const uint32x4_t bits = vld1q_u32(powers);
    uint32_t nonzero = 0;
    for (int i = 0; i < 4; ++i) {
      const int16x8_t v = vld1q_s16(from + 8 * i);
      vst1q_s16(to + 8 * i, v);
      const uint32x4_t words = vreinterpretq_u32_s16(v);
      nonzero |= vaddvq_u32(vandq_u32(vtstq_u32(words, words), bits)) << (4 * i);
    }
    *mask = nonzero;
    return true;
  }

  static Sums LoadBias(const int32_t* bias, int32_t) { return vld1q_s32(bias); }
  static Weights LoadWeights(const char* at) {
    return vld1q_s16(reinterpret_cast<const int16_t*>(at));
  }
  static int16x4_t LoadWord(const char* at) {
    int32_t word;
    std::memcpy(&word, at, sizeof(word));
    return vreinterpret_s16_s32(vdup_n_s32(word));
  }
  static Sums MultiplyAdd(Sums sums, Weights weights, int16x4_t x) {
    return vmlal_high_lane_s16(vmlal_lane_s16(sums, vget_low_s16(weights), x, 0), weights, x, 1);
  }

  // (sum + 2^(shift - 1)) >> shift without the addition that could overflow.
  static void Requantise(Sums sums, int shift, int lo, int hi, int16_t* out) {
    const int32x4_t bit = vandq_s32(vshlq_s32(sums, vdupq_n_s32(1 - shift)), vdupq_n_s32(1));
    int32x4_t v = vaddq_s32(vshlq_s32(sums, vdupq_n_s32(-shift)), bit);
    v = vminq_s32(vmaxq_s32(v, vdupq_n_s32(lo)), vdupq_n_s32(hi));
    vst1_s16(out, vmovn_s32(v));
  }
};

using Loops = ConvLoops<NeonUnit>;

}  // namespace

const ConvKernel kConvWideNeon = {Loops::PackedBytes, Loops::Pack, Loops::ScratchBytes, Loops::Run};

}  // namespace fasdiff
