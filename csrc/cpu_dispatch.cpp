#include "cpu_dispatch.h"

#include <atomic>
#include <cstdlib>

#if FASDIFF_SIMD_ARM
#include <sys/auxv.h>
#endif
#if FASDIFF_SIMD_AVXVNNI
#include <cpuid.h>
#endif

namespace fasdiff {
namespace {

constexpr int kInvalid = -1;

#if FASDIFF_SIMD_ARM
constexpr unsigned long kHwcapAsimdDotprod = 1ul << 20;  // HWCAP_ASIMDDP of Linux.
#endif

#if FASDIFF_SIMD_AVXVNNI
// CPUID leaf 7, subleaf 1, EAX bit 4 (not every compiler's __builtin_cpu_supports knows it). That
// the system keeps the registers is what support of AVX2 says.
bool HasAvxVnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}
#endif

const char* FromEnvironment() {
  const char* value = std::getenv("FASDIFF_CPU");
  return value == nullptr ? "" : value;
}

int FirstChoice() {
  const std::string& forced = CpuEnvironment();
  int best = kInvalid;
  for (const CpuPath path : AvailableCpuPaths()) {
    if (forced.empty() || forced == CpuPathName(path)) best = static_cast<int>(path);
  }
  return best;
}

std::atomic<int>& Choice() {
  static std::atomic<int> choice(FirstChoice());
  return choice;
}

}  // namespace

const char* CpuPathName(CpuPath path) {
  switch (path) {
    case CpuPath::kScalar:
      return "scalar";
    case CpuPath::kAvx2:
      return "avx2";
    case CpuPath::kAvxVnni:
      return "avxvnni";
    case CpuPath::kAvx512Vnni:
      return "avx512vnni";
    case CpuPath::kNeon:
      return "neon";
    case CpuPath::kNeonDotprod:
      return "neondotprod";
  }
  return "unknown";
}

bool CpuPathAvailable(CpuPath path) {
  switch (path) {
    case CpuPath::kScalar:
      return true;
    case CpuPath::kAvx2:
#if FASDIFF_SIMD_X86
      return __builtin_cpu_supports("avx2");
#else
      return false;
#endif
    case CpuPath::kAvxVnni:
#if FASDIFF_SIMD_AVXVNNI
      return __builtin_cpu_supports("avx2") && HasAvxVnni();
#else
      return false;
#endif
    case CpuPath::kAvx512Vnni:
#if FASDIFF_SIMD_X86
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
#else
      return false;
#endif
    case CpuPath::kNeon:
#if FASDIFF_SIMD_ARM
      return true;  // Part of every aarch64.
#else
      return false;
#endif
    case CpuPath::kNeonDotprod:
#if FASDIFF_SIMD_ARM
      return (getauxval(AT_HWCAP) & kHwcapAsimdDotprod) != 0;
#else
      return false;
#endif
  }
  return false;
}

std::vector<CpuPath> AvailableCpuPaths() {
  std::vector<CpuPath> paths;
  for (int i = 0; i < kNumCpuPaths; ++i) {
    const CpuPath path = static_cast<CpuPath>(i);
    if (CpuPathAvailable(path)) paths.push_back(path);
  }
  return paths;
}

std::string AvailableCpuPathNames() {
  std::string names;
  for (const CpuPath path : AvailableCpuPaths()) {
    if (!names.empty()) names += ", ";
    names += CpuPathName(path);
  }
  return names;
}

const std::string& CpuEnvironment() {
  static const std::string value(FromEnvironment());
  return value;
}

Status ChosenCpuPath(CpuPath* path) {
  const int choice = Choice().load(std::memory_order_relaxed);
  if (choice == kInvalid) return Status::kBadCpuPath;
  *path = static_cast<CpuPath>(choice);
  return Status::kOk;
}

Status SetCpuPath(CpuPath path) {
  if (!CpuPathAvailable(path)) return Status::kBadCpuPath;
  Choice().store(static_cast<int>(path), std::memory_order_relaxed);
  return Status::kOk;
}

}  // namespace fasdiff
