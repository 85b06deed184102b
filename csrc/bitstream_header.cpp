#include "bitstream_header.h"

namespace fasdiff {
namespace {

constexpr int kMagic = 0xFA;
constexpr int kMaxQuality = 252;
constexpr size_t kCrcOffset = 8;

}  // namespace

uint32_t Crc32(const uint8_t* data, size_t size, uint32_t crc) {
  crc = ~crc;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

Status ParseFileHeader(const uint8_t* file, size_t size, FileHeader* header) {
  if (size < 1) return Status::kHeaderTooShort;
  if (file[0] != kMagic) return Status::kHeaderBadMagic;
  // The version decides what everything after it means, even the length of the header.
  if (size > 1 && file[1] >> 4 != kFormatVersion) return Status::kHeaderBadVersion;
  if (size < kHeaderSize) return Status::kHeaderTooShort;
  header->version = file[1] >> 4;
  header->scale = (file[1] >> 2) & 3;
  if ((file[1] & 3) != 0) return Status::kHeaderReservedBits;
  header->model_id = file[2] << 8 | file[3];
  header->width = (file[4] << 4 | file[5] >> 4) + 1;
  header->height = ((file[5] & 15) << 8 | file[6]) + 1;
  header->quality = file[7];
  const uint32_t expected = uint32_t{file[8]} << 24 | uint32_t{file[9]} << 16 |
                            uint32_t{file[10]} << 8 | uint32_t{file[11]};
  const uint32_t crc = Crc32(file + kHeaderSize, size - kHeaderSize, Crc32(file, kCrcOffset, 0));
  if (crc != expected) return Status::kHeaderBadChecksum;
  if (header->quality > kMaxQuality) return Status::kHeaderBadQuality;
  if (header->coded_width() * header->coded_height() > kMaxCodedPixels) {
    return Status::kHeaderTooManyPixels;
  }
  return Status::kOk;
}

}  // namespace fasdiff
