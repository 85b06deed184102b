// Damaged files, with and without a checksum that fits: nothing may crash, hang or read elsewhere.
//   fuzz_streams MUTANTS tests/vectors/v1 tests/vectors/v5
//
// Even mutants keep the old check and may be damaged anywhere: every one must be refused by the
// header. (A CRC of 16 bits lets one in 65,536 through; these mutants, always the same, have none.)
// Odd ones have the payload, the size, the scale or the quality changed and the check recomputed:
// every one must reach the entropy decoder. Both counts are checked. Meant to run under
// AddressSanitizer and UBSan.

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "bitstream_header.h"
#include "check.h"
#include "entropy_coder.h"
#include "entropy_model.h"
#include "files.h"
#include "golden.h"
#include "latents.h"
#include "random.h"

namespace fasdiff {
namespace testing {
namespace {

constexpr int kMaxSide = 256;  // Of most images, in pixels.
#if defined(__SANITIZE_ADDRESS__)
constexpr long kMaxMegabytes = 1024;  // AddressSanitizer keeps what was freed.
#else
constexpr long kMaxMegabytes = 64;
#endif

struct Tally {
  long mutants = 0;
  long resealed = 0;  // Mutants with a check that fits.
  long refused_by_header = 0;
  long reached_decoder = 0;
  long decoded = 0;
  long decoded_truncated = 0;
};

void Damage(Random* random, size_t first, Bytes* bytes) {
  const int edits = random->Int(1, 4);
  for (int e = 0; e < edits; ++e) {
    const size_t span = bytes->size() - first;
    switch (random->Int(0, 6)) {
      case 0:  // Flip a bit.
        if (span > 0) (*bytes)[first + random->Index(span)] ^= 1 << random->Int(0, 7);
        break;
      case 1:  // Overwrite a byte.
        if (span > 0) (*bytes)[first + random->Index(span)] = random->Byte();
        break;
      case 2:  // Cut the end.
        bytes->resize(first + (span > 0 ? random->Index(span) : 0));
        break;
      case 3: {  // Insert bytes.
        const int count = random->Int(1, 9);
        for (int i = 0; i < count; ++i) {
          const size_t at = first + random->Index(bytes->size() - first + 1);
          bytes->insert(bytes->begin() + static_cast<ptrdiff_t>(at), random->Byte());
        }
        break;
      }
      case 4:  // Remove a byte.
        if (span > 0) {
          bytes->erase(bytes->begin() + static_cast<ptrdiff_t>(first + random->Index(span)));
        }
        break;
      case 5: {  // A run of equal bytes, the kind that carries and escapes feed on.
        const uint8_t value = random->Int(0, 1) == 0 ? 0x00 : 0xFF;
        for (size_t i = first + (span > 0 ? random->Index(span) : 0); i < bytes->size(); ++i) {
          (*bytes)[i] = value;
        }
        break;
      }
      default: {  // Random bytes from here on.
        bytes->resize(first + (span > 0 ? random->Index(span) : 0));
        const int count = random->Int(0, 400);
        for (int i = 0; i < count; ++i) bytes->push_back(random->Byte());
        break;
      }
    }
  }
}

// Changes what a check that fits lets through: payload, size, scale, quality.
void DamageBehindHeader(Random* random, bool huge, Bytes* file) {
  FileHeader header;
  CHECK(ParseFileHeader(file->data(), file->size(), &header) == Status::kOk);
  HeaderFields fields = FieldsOf(header, (*file)[1]);
  Bytes payload(file->begin() + static_cast<ptrdiff_t>(header.bytes), file->end());
  const int kind = random->Int(0, 7);
  if (kind != 0) Damage(random, 0, &payload);
  if (kind <= 2) {
    fields.width = random->Int(1, kMaxSide);
    fields.height = random->Int(1, kMaxSide);
    if (fields.square) fields.width = fields.height = (fields.width + 15) / 16 * 16;
  }
  if (kind == 1 || kind == 3) fields.quality = random->Int(0, 252);
  if (kind == 2 || kind == 4) fields.scale = random->Int(0, 3);
  if (huge) {  // As large as a file can be.
    fields.width = fields.height = 4096;
    fields.scale = 1;
  }
  *file = MakeFile(fields, payload);
}

void DecodeMutant(const EntropyModel& model, const Bytes& file, const FileHeader& header,
                  bool truncated_ok, Tally* tally) {
  const LatentSize size = header.latent_size();
  const uint8_t* payload = file.data() + header.bytes;
  const size_t payload_size = file.size() - header.bytes;
  Latents latents(model, size);
  ++tally->reached_decoder;
  const Status status = Decode(model, payload, payload_size, size, header.quality, false, &latents);
  CHECK(status == Status::kOk || IsStreamError(status));
  if (truncated_ok && status != Status::kOk) {
    const Status lenient =
        Decode(model, payload, payload_size, size, header.quality, true, &latents);
    CHECK(lenient == Status::kOk || IsStreamError(lenient));
    if (lenient == Status::kOk) {
      ++tally->decoded_truncated;
      CHECK(InRange(model, latents));
    }
  }
  if (status != Status::kOk) return;
  ++tally->decoded;
  CHECK(InRange(model, latents));
  // What was read can be written, and reads the same.
  Bytes again;
  Latents second(model, size);
  CHECK(EncodeLatents(model, latents.view(), size, header.quality, &again) == Status::kOk);
  CHECK(again.size() <= payload_size + 2);
  CHECK(Decode(model, again.data(), again.size(), size, header.quality, false, &second) ==
        Status::kOk);
  CHECK(latents == second);
}

void Fuzz(const EntropyModel& model, const Golden& golden, long mutants, Tally* tally) {
  Random random(20240607);
  while (tally->mutants < mutants) {
    const GoldenStream& stream = golden.streams[random.Index(golden.streams.size())];
    Bytes file = stream.file;
    const bool reseal = tally->mutants % 2 == 1;
    if (reseal) {
      const bool huge = tally->mutants % 5000 == 1;
      DamageBehindHeader(&random, huge, &file);
    } else {
      Damage(&random, 0, &file);
    }
    if (file == stream.file) continue;  // Not a mutant: edits undid each other.
    ++tally->mutants;
    tally->resealed += reseal;
    FileHeader header;
    const Status status = ParseFileHeader(file.data(), file.size(), &header);
    CHECK(status == Status::kOk || IsStreamError(status));
    if (status != Status::kOk) {
      ++tally->refused_by_header;
      continue;
    }
    DecodeMutant(model, file, header, random.Int(0, 3) == 0, tally);
  }
}

void FuzzAll(const Golden& golden, long mutants) {
  EntropyModel model;
  const Status parsed = ParseEntropyModel(golden.model.data(), golden.model.size(), &model);
  CHECK(mutants >= 2 && mutants % 2 == 0);
  CHECK(parsed == Status::kOk);
  CHECK(!golden.streams.empty());
  if (parsed != Status::kOk || golden.streams.empty()) return;
  Tally tally;
  Fuzz(model, golden, mutants, &tally);
  std::printf(
      "model file version %d: %ld mutants\n"
      "%ld with the old check, %ld refused by the header\n"
      "%ld with a new check, %ld reached the entropy decoder\n"
      "%ld of these decoded, %ld more as truncated\n",
      model.version, tally.mutants, tally.mutants - tally.resealed, tally.refused_by_header,
      tally.resealed, tally.reached_decoder, tally.decoded, tally.decoded_truncated);
  CHECK(tally.mutants == mutants);
  CHECK(tally.resealed == mutants / 2);
  CHECK(tally.reached_decoder == tally.resealed);
  CHECK(tally.refused_by_header == mutants - tally.resealed);
  CHECK(tally.decoded > 0 && tally.decoded < tally.reached_decoder);
  CHECK(tally.decoded_truncated > 0);
}

long PeakMegabytes() {
  rusage usage;
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss / 1024 : 0;
}

}  // namespace
}  // namespace testing
}  // namespace fasdiff

int main(int argc, char** argv) {
  using namespace fasdiff;
  using namespace fasdiff::testing;
  const bool called_right =
      ForEachGolden(argc, argv, 2, "MUTANTS DIRECTORY...",
                    [&](const Golden& golden) { FuzzAll(golden, std::atol(argv[1])); });
  if (!called_right) return 2;
  const long megabytes = PeakMegabytes();
  std::printf("%ld MB at the peak\n", megabytes);
  CHECK(megabytes > 0 && megabytes < kMaxMegabytes);
  return Finish("fuzz_streams");
}
