// Owned latents, and the calls on them that the test programs share.
#ifndef FASDIFF_TESTS_CPP_LATENTS_H_
#define FASDIFF_TESTS_CPP_LATENTS_H_

#include <cstdint>
#include <vector>

#include "entropy_coder.h"
#include "entropy_model.h"

namespace fasdiff {
namespace testing {

struct Latents {
  std::vector<int32_t> s, z, y;

  Latents(const EntropyModel& model, LatentSize size)
      : s(static_cast<size_t>(model.num_s)),
        z(static_cast<size_t>(model.num_z) * size.z_plane()),
        y(static_cast<size_t>(model.num_y) * size.y_plane()) {}

  LatentsView view() const { return {s.data(), z.data(), y.data()}; }
  bool operator==(const Latents& other) const {
    return s == other.s && z == other.z && y == other.y;
  }
};

inline Status Decode(const EntropyModel& model, const uint8_t* payload, size_t payload_size,
                     LatentSize size, int q, bool truncated_ok, Latents* out) {
  return DecodeLatents(model, payload, payload_size, size, q, truncated_ok, out->s.data(),
                       out->z.data(), out->y.data());
}

// What a base that is coded once gives with these latents' residual; q is one that codes it.
inline Status EncodeFromBase(const EntropyModel& model, const Latents& latents, LatentSize size,
                             int q, std::vector<uint8_t>* payload) {
  CodedBase base;
  const Status status = base.Code(model, latents.view(), size);
  if (status != Status::kOk) return status;
  const size_t first = static_cast<size_t>(model.num_base()) * size.y_plane();
  return base.Encode(latents.y.data() + first, nullptr, q, payload);
}

inline bool InRange(const EntropyModel& model, const Latents& latents) {
  const int32_t unit = 1 << model.unit_bits();
  for (const std::vector<int32_t>* part : {&latents.s, &latents.z, &latents.y}) {
    for (const int32_t v : *part) {
      if (v < kMinSymbol * unit || v > kMaxSymbol * unit) return false;
    }
  }
  return true;
}

}  // namespace testing
}  // namespace fasdiff

#endif  // FASDIFF_TESTS_CPP_LATENTS_H_
