#include "integer_net.h"

#include <utility>

#include "cpu_dispatch.h"

namespace fasdiff {
namespace {

constexpr size_t kBiasUnit = 16;

// How a path computes layers, the fastest first; the last takes any activations.
std::vector<const ConvKernel*> KernelsOf(CpuPath path) {
  switch (path) {
#if FASDIFF_SIMD_X86
    case CpuPath::kAvx2:
      return {&kConvWideAvx2};
#if FASDIFF_SIMD_AVXVNNI
    case CpuPath::kAvxVnni:
      return {&kConvNarrowAvxVnni, &kConvWideAvx2};
#endif
    case CpuPath::kAvx512Vnni:
      return {&kConvNarrowAvx512Vnni, &kConvWideAvx2};
#elif FASDIFF_SIMD_ARM
    case CpuPath::kNeon:
      return {&kConvWideNeon};
    case CpuPath::kNeonDotprod:
      return {&kConvNarrowNeonDotprod, &kConvWideNeon};
#endif
    default:
      return {&kConvWideScalar};
  }
}

size_t LinesFor(size_t bytes) { return (bytes + sizeof(CacheLine) - 1) / sizeof(CacheLine); }

}  // namespace

ConvArea AreaOf(int height, int width, Lattice lattice) {
  switch (lattice) {
    case Lattice::kEven:
      return {height, width, 0, 1, 2, {0, 1}};
    case Lattice::kOdd:
      return {height, width, 0, 1, 2, {1, 0}};
    case Lattice::kEvenEven:
      return {height, width, 0, 2, 2, {0, 0}};
    case Lattice::kOddOdd:
      return {height, width, 1, 2, 2, {1, 1}};
    case Lattice::kAll:
      break;
  }
  return {height, width, 0, 1, 1, {0, 0}};
}

Status ConvLayer::Init(int cin, int cout, int k, int shift, int lo, int hi, const int8_t* weight,
                       const int32_t* bias) {
  if (cin < 1 || cin > 2 * kMaxChannels || cout < 1 || cout > kMaxChannels) {
    return Status::kModelBadLayer;
  }
  if ((k != 1 && k != 3) || shift < 1 || shift > kMaxLayerShift) return Status::kModelBadLayer;
  if (lo < INT16_MIN || hi > INT16_MAX || lo > hi) return Status::kModelBadLayer;
  for (int o = 0; o < cout; ++o) {
    if (bias[o] <= -kBiasLimit || bias[o] >= kBiasLimit) return Status::kModelBadBias;
  }
  CpuPath path;
  const Status status = ChosenCpuPath(&path);
  if (status != Status::kOk) return status;
  shape_ = {cin, cout, k, shift, lo, hi};
  bias_.assign(bias, bias + cout);
  bias_.resize((bias_.size() + kBiasUnit - 1) / kBiasUnit * kBiasUnit);
  packings_.clear();
  for (const ConvKernel* kernel : KernelsOf(path)) {
    packings_.push_back({kernel, CacheLines(LinesFor(kernel->packed_bytes(shape_)))});
    kernel->pack(shape_, weight, packings_.back().weight.data());
  }
  return Status::kOk;
}

Status ConvLayer::CheckAccumulator(int max_input) const {
  int64_t bias = 0;
  for (const int32_t b : bias_) {
    const int64_t magnitude = b < 0 ? -int64_t{b} : int64_t{b};
    if (magnitude > bias) bias = magnitude;
  }
  const int64_t bound = int64_t{shape_.cin} * shape_.k * shape_.k * 128 * max_input + bias;
  return bound < (int64_t{1} << 31) ? Status::kOk : Status::kModelAccumulatorTooWide;
}

void ConvLayer::Run(const int16_t* x, int x_stride, int height, int width, Lattice lattice,
                    int16_t* out, int out_stride, CacheLines* scratch) const {
  const ConvArea area = AreaOf(height, width, lattice);
  for (const Packing& packing : packings_) {
    const size_t lines = LinesFor(packing.kernel->scratch_bytes(shape_, area));
    if (scratch->size() < lines) scratch->resize(lines);
    const bool done = packing.kernel->run(shape_, packing.weight.data(), bias_.data(), x, x_stride,
                                          area, out, out_stride, scratch->data());
    if (done) return;
  }
}

Status IntegerNet::Append(ConvLayer layer) {
  if (!layers_.empty() && layer.cin() != cout()) return Status::kModelBadLayerChain;
  layers_.push_back(std::move(layer));
  return Status::kOk;
}

Status IntegerNet::CheckAccumulators(int max_input) const {
  for (const ConvLayer& layer : layers_) {
    const Status status = layer.CheckAccumulator(max_input);
    if (status != Status::kOk) return status;
    max_input = layer.max_output();
  }
  return Status::kOk;
}

void IntegerNet::Run(const int16_t* x, int x_stride, int height, int width, Lattice lattice,
                     int16_t* out, int out_stride, Scratch* scratch) const {
  // A layer computes a lattice only if no later layer looks at neighbours.
  size_t first_partial = layers_.size() - 1;
  while (first_partial > 0 && layers_[first_partial].k() == 1) --first_partial;
  const size_t positions = static_cast<size_t>(height) * static_cast<size_t>(width);
  for (size_t l = 0; l < layers_.size(); ++l) {
    const ConvLayer& layer = layers_[l];
    const bool last = l + 1 == layers_.size();
    const int stride = last ? out_stride : PadChannels(layer.cout());
    int16_t* to = out;
    if (!last) {
      std::vector<int16_t>& hidden = scratch->hidden[l % 2];
      const size_t needed = positions * static_cast<size_t>(stride);
      if (hidden.size() < needed) hidden.resize(needed);
      to = hidden.data();
    }
    layer.Run(x, x_stride, height, width, l >= first_partial ? lattice : Lattice::kAll, to, stride,
              &scratch->conv);
    x = to;
    x_stride = stride;
  }
}

}  // namespace fasdiff
