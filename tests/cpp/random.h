// Random integers that are the same with every standard library (splitmix64).
#ifndef FASDIFF_TESTS_CPP_RANDOM_H_
#define FASDIFF_TESTS_CPP_RANDOM_H_

#include <cstddef>
#include <cstdint>

namespace fasdiff {
namespace testing {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Bits() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  // Uniform in [lo, hi].
  int Int(int lo, int hi) {
    const uint64_t count = static_cast<uint64_t>(hi - lo) + 1;
    return lo + static_cast<int>(Bits() % count);
  }

  size_t Index(size_t size) { return static_cast<size_t>(Bits() % size); }

  uint8_t Byte() { return static_cast<uint8_t>(Bits() >> 56); }

 private:
  uint64_t state_;
};

}  // namespace testing
}  // namespace fasdiff

#endif  // FASDIFF_TESTS_CPP_RANDOM_H_
