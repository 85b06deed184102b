// Golden streams decode to the symbols that index.json names, and encode to the same bytes again,
// with each instruction set that this build and machine have.
//   verify_vectors tests/vectors/v1 tests/vectors/v5

#include <cstdio>
#include <string>

#include "bitstream_header.h"
#include "check.h"
#include "cpu_dispatch.h"
#include "entropy_coder.h"
#include "entropy_model.h"
#include "golden.h"
#include "latents.h"
#include "sha256.h"

namespace fasdiff {
namespace testing {
namespace {

std::string SymbolsSha256(const Latents& latents) {
  Bytes bytes;
  for (const std::vector<int32_t>* part : {&latents.s, &latents.z, &latents.y}) {
    for (const int32_t v : *part) {
      for (int shift = 0; shift < 32; shift += 8) {
        bytes.push_back(static_cast<uint8_t>(static_cast<uint32_t>(v) >> shift));
      }
    }
  }
  return Sha256(bytes);
}

void Verify(const EntropyModel& model, const std::string& model_id, const GoldenStream& stream) {
  FileHeader header;
  const Status parsed = ParseFileHeader(stream.file.data(), stream.file.size(), &header);
  CHECK(parsed == Status::kOk);
  if (parsed != Status::kOk) return;
  char id[5];
  std::snprintf(id, sizeof(id), "%04x", static_cast<unsigned>(header.model_id) & 0xFFFFu);
  CHECK(id == model_id);
  const LatentSize size = header.latent_size();
  const Bytes payload(stream.file.begin() + static_cast<ptrdiff_t>(header.bytes),
                      stream.file.end());
  Latents latents(model, size);
  const Status decoded =
      Decode(model, payload.data(), payload.size(), size, header.quality, false, &latents);
  CHECK(decoded == Status::kOk);
  CHECK(SymbolsSha256(latents) == stream.symbols_sha256);
  Bytes again;
  CHECK(EncodeLatents(model, latents.view(), size, header.quality, &again) == Status::kOk);
  CHECK(again == payload);
  if (header.quality >= model.residual_from) {
    CHECK(EncodeFromBase(model, latents, size, header.quality, &again) == Status::kOk);
    CHECK(again == payload);
  }
  std::printf("%-32s %4d x %-4d quality %3d  %4zu bytes\n", stream.name.c_str(), header.width,
              header.height, header.quality, stream.file.size());
}

void VerifyAll(const Golden& golden) {
  CHECK(golden.streams.size() >= 10);
  EntropyModel model;
  const Status parsed = ParseEntropyModel(golden.model.data(), golden.model.size(), &model);
  CHECK(parsed == Status::kOk);
  if (parsed != Status::kOk) return;
  const std::string model_id = Sha256(golden.model).substr(0, 4);
  std::printf("model %s, file version %d\n", model_id.c_str(), model.version);
  for (const GoldenStream& stream : golden.streams) Verify(model, model_id, stream);
}

}  // namespace
}  // namespace testing
}  // namespace fasdiff

int main(int argc, char** argv) {
  using namespace fasdiff;
  using namespace fasdiff::testing;
  CHECK(Sha256({'a', 'b', 'c'}) ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  for (const CpuPath path : AvailableCpuPaths()) {
    CHECK(SetCpuPath(path) == Status::kOk);
    std::printf("%s\n", CpuPathName(path));
    if (!ForEachGolden(argc, argv, 1, "DIRECTORY...", VerifyAll)) return 2;
  }
  return Finish("verify_vectors");
}
