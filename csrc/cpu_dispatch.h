// Which instruction set the vector kernels use: chosen at first use, for the whole process.
//
// The choice is the best that this build contains and this machine runs, unless the environment
// variable FASDIFF_CPU names another. Every choice gives the same integers and the same bands;
// only the speed differs. A name that is unknown, or that this build or machine lacks, is an error
// of everything that would have used it (Status::kBadCpuPath), never a quiet fallback.
#ifndef FASDIFF_CSRC_CPU_DISPATCH_H_
#define FASDIFF_CSRC_CPU_DISPATCH_H_

#include <string>
#include <vector>

#include "status.h"

namespace fasdiff {

enum class CpuPath : int { kScalar = 0, kAvx2, kAvxVnni, kAvx512Vnni, kNeon, kNeonDotprod };
constexpr int kNumCpuPaths = 6;

// As FASDIFF_CPU spells it: "scalar", "avx2", "avxvnni", "avx512vnni", "neon", "neondotprod".
const char* CpuPathName(CpuPath path);

// Whether this build contains the path and this machine runs it. The scalar path always is there.
bool CpuPathAvailable(CpuPath path);

// The available paths, slowest first; and as text: "scalar, avx2".
std::vector<CpuPath> AvailableCpuPaths();
std::string AvailableCpuPathNames();

// The value of FASDIFF_CPU at first use; empty if it was not set.
const std::string& CpuEnvironment();

// The path to use. kBadCpuPath if FASDIFF_CPU cannot be followed.
Status ChosenCpuPath(CpuPath* path);

// Overrides the choice, FASDIFF_CPU included, for tests and benchmarks. Networks keep the path that
// was chosen when they were made. kBadCpuPath if the path is not available.
Status SetCpuPath(CpuPath path);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_CPU_DISPATCH_H_
