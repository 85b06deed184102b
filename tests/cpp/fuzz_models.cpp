// Damaged entropy model files: parsed or refused, and whatever is parsed must run without harm.
//   fuzz_models MUTANTS tests/vectors/v1 tests/vectors/v5
//
// Of each model, every length of the first 400 bytes is tried, then mutants. Meant to run under
// AddressSanitizer and UBSan: a model that the parser lets through may not overflow an accumulator.

#include <cstdio>
#include <cstdlib>

#include "check.h"
#include "entropy_coder.h"
#include "entropy_model.h"
#include "golden.h"
#include "latents.h"
#include "random.h"

namespace fasdiff {
namespace testing {
namespace {

constexpr size_t kNetworks = 6000;  // Bytes at the end of a file, about.

struct Tally {
  long parsed = 0;
  long refused = 0;
};

void Mutate(Random* random, Bytes* file) {
  const int edits = random->Int(1, 6);
  for (int e = 0; e < edits; ++e) {
    // Half of the edits go where the counts are, the others anywhere; the networks are at the end.
    const size_t span = random->Int(0, 1) == 0 ? 40 : file->size();
    const size_t at =
        random->Int(0, 2) == 0 ? file->size() - 1 - random->Index(kNetworks) : random->Index(span);
    const uint8_t extremes[] = {0x00, 0x01, 0x7F, 0x80, 0xFF};
    switch (random->Int(0, 2)) {
      case 0:
        (*file)[at] ^= 1 << random->Int(0, 7);
        break;
      case 1:
        (*file)[at] = extremes[random->Index(5)];
        break;
      default:
        (*file)[at] = random->Byte();
        break;
    }
  }
  if (random->Int(0, 19) == 0) file->resize(random->Index(file->size()));
}

void Try(const Bytes& file, Random* random, Tally* tally) {
  EntropyModel model;
  const Status status = ParseEntropyModel(file.data(), file.size(), &model);
  CHECK(status == Status::kOk || IsModelError(status));
  if (status != Status::kOk) {
    ++tally->refused;
    return;
  }
  ++tally->parsed;
  LatentSize size;
  size.hy = random->Int(1, 6);
  size.wy = random->Int(1, 6);
  const int q = random->Int(0, 252);
  Bytes payload;
  const int length = random->Int(0, 600);
  for (int i = 0; i < length; ++i) payload.push_back(random->Byte());
  Latents latents(model, size);
  const Status decoded = Decode(model, payload.data(), payload.size(), size, q, true, &latents);
  CHECK(decoded == Status::kOk || IsStreamError(decoded));
  const int32_t lowest = kMinSymbol * (1 << model.unit_bits());
  const int32_t highest = kMaxSymbol * (1 << model.unit_bits());
  for (int32_t& v : latents.s) v = random->Int(lowest, highest);
  for (int32_t& v : latents.z) v = random->Int(0, 1) == 0 ? lowest : highest;
  for (int32_t& v : latents.y) v = random->Int(0, 1) == 0 ? lowest : highest;
  Bytes encoded;
  CHECK(EncodeLatents(model, latents.view(), size, q, &encoded) == Status::kOk);
  if (q >= model.residual_from) {
    Bytes from_base;
    CHECK(EncodeFromBase(model, latents, size, q, &from_base) == Status::kOk);
    CHECK(from_base == encoded);
  }
  Latents again(model, size);
  CHECK(Decode(model, encoded.data(), encoded.size(), size, q, false, &again) == Status::kOk);
  CHECK(InRange(model, again));
  if (model.version == 1) CHECK(latents == again);
  // Levels that came back have a code of their own.
  Bytes second;
  CHECK(EncodeLatents(model, again.view(), size, q, &second) == Status::kOk);
  CHECK(second == encoded);
}

void Fuzz(const Golden& golden, long mutants) {
  CHECK(golden.model.size() > kNetworks);
  if (golden.model.size() <= kNetworks) return;
  Tally tally;
  Random random(7);
  for (size_t size = 0; size < 400; ++size) {
    const Bytes cut(golden.model.begin(), golden.model.begin() + static_cast<ptrdiff_t>(size));
    Try(cut, &random, &tally);
  }
  CHECK(tally.refused == 400);
  for (long i = 0; i < mutants; ++i) {
    Bytes file = golden.model;
    Mutate(&random, &file);
    Try(file, &random, &tally);
  }
  std::printf("%ld model files refused, %ld parsed and run\n", tally.refused, tally.parsed);
  CHECK(tally.refused + tally.parsed == mutants + 400);
  CHECK(tally.parsed > mutants / 20);
}

}  // namespace
}  // namespace testing
}  // namespace fasdiff

int main(int argc, char** argv) {
  using namespace fasdiff;
  using namespace fasdiff::testing;
  const bool called_right =
      ForEachGolden(argc, argv, 2, "MUTANTS DIRECTORY...",
                    [&](const Golden& golden) { Fuzz(golden, std::atol(argv[1])); });
  if (!called_right) return 2;
  return Finish("fuzz_models");
}
