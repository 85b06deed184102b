// The smallest of test frameworks: CHECK counts and reports, Finish gives the exit status.
#ifndef FASDIFF_TESTS_CPP_CHECK_H_
#define FASDIFF_TESTS_CPP_CHECK_H_

#include <cstdio>

namespace fasdiff {
namespace testing {

struct Counts {
  long checks = 0;
  long failures = 0;
};

inline Counts& TotalCounts() {
  static Counts counts;
  return counts;
}

inline void Check(bool holds, const char* what, const char* file, int line) {
  Counts& counts = TotalCounts();
  ++counts.checks;
  if (holds) return;
  if (++counts.failures <= 20) std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
}

// Fails as well if nothing was checked at all.
inline int Finish(const char* name) {
  const Counts& counts = TotalCounts();
  std::printf("%s: %ld checks, %ld failures\n", name, counts.checks, counts.failures);
  return counts.checks > 0 && counts.failures == 0 ? 0 : 1;
}

}  // namespace testing
}  // namespace fasdiff

#define CHECK(condition) ::fasdiff::testing::Check((condition), #condition, __FILE__, __LINE__)

#endif  // FASDIFF_TESTS_CPP_CHECK_H_
