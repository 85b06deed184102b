// The 12-byte file header, big-endian. docs/bitstream.md is the specification.
//
//   byte 0      magic 0xFA
//   byte 1      version << 4 | scale << 2 | 00      version 1; coded at 1 / 2^scale
//   bytes 2-3   model id
//   bytes 4-6   width - 1 (12 bits), height - 1 (12 bits), of the original image
//   byte 7      quality in quarter steps, 0..252
//   bytes 8-11  CRC-32 (the one of zlib and PNG) of bytes 0-7 followed by the payload
//   then the payload, to the end of the file
//
// The coded size has at most 2048 * 2048 pixels, which bounds what a decoder needs.
#ifndef FASDIFF_CSRC_BITSTREAM_HEADER_H_
#define FASDIFF_CSRC_BITSTREAM_HEADER_H_

#include <cstddef>
#include <cstdint>

#include "entropy_coder.h"
#include "status.h"

namespace fasdiff {

constexpr size_t kHeaderSize = 12;
constexpr int kFormatVersion = 1;
constexpr int kMaxCodedPixels = 2048 * 2048;

struct FileHeader {
  int version = kFormatVersion;
  int scale = 0;  // 0..3.
  int model_id = 0;
  int width = 0, height = 0;  // 1..4096.
  int quality = 0;

  // Sides of what was coded: the image at 1 / 2^scale, rounded up.
  int coded_width() const { return CeilDiv(width, 1 << scale); }
  int coded_height() const { return CeilDiv(height, 1 << scale); }

  // The latent's size: the coded size in blocks of 16 pixels, rounded up.
  LatentSize latent_size() const {
    LatentSize size;
    size.hy = CeilDiv(coded_height(), 16);
    size.wy = CeilDiv(coded_width(), 16);
    return size;
  }

 private:
  static constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }
};

// CRC-32 with the reflected polynomial 0xEDB88320; crc is the result for what came before, or 0.
uint32_t Crc32(const uint8_t* data, size_t size, uint32_t crc);

// Reads and checks the header of a whole file, CRC included. The kHeader... statuses.
Status ParseFileHeader(const uint8_t* file, size_t size, FileHeader* header);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_BITSTREAM_HEADER_H_
