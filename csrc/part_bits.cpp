#include "part_bits.h"

#include <algorithm>
#include <cmath>

namespace fasdiff {
namespace {

class BitSink : public ValueSink {
 public:
  explicit BitSink(double* bits) : bits_(bits) {}

  void Put(int part, const CdfTable& table, int32_t value) override {
    const int32_t index = value - table.offset;
    const bool regular = index >= 0 && index < table.num_regular;
    const uint32_t frequency = table.Frequency(regular ? index : table.num_regular);
    bits_[part] += kCdfBits - std::log2(static_cast<double>(frequency));
    if (!regular) bits_[part] += 2 * EscapePrefix(EscapeNumber(table, value)) + 1;
  }

 private:
  double* bits_;
};

}  // namespace

Status PartBits(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                double* bits) {
  std::fill(bits, bits + 2 + model.num_passes(), 0.0);
  BitSink sink(bits);
  return VisitValues(model, latents, size, q, &sink);
}

}  // namespace fasdiff
