// The file header, 8 to 12 bytes, big-endian. docs/bitstream.md is the specification.
//
//   byte 0      magic 0xFA
//   byte 1      version << 4 | scale << 2 | square << 1 | short check    coded at 1 / 2^scale
//   2 bytes     model id
//   1 or 3      size of the original image: if square, side / 16 - 1; otherwise width - 1 and
//               height - 1, 12 bits each
//   1 byte      quality in quarter steps, 0..252
//   2 or 4      check of all bytes before it followed by the payload: if short, CRC-16; otherwise
//               CRC-32 (the one of zlib and PNG)
//   then the payload, to the end of the file
//
// In version 1 the two flags are reserved and zero; this is version 2.
//
// The coded size has at most 2048 * 2048 pixels, which bounds what a decoder needs.
#ifndef FASDIFF_CSRC_BITSTREAM_HEADER_H_
#define FASDIFF_CSRC_BITSTREAM_HEADER_H_

#include <cstddef>
#include <cstdint>

#include "entropy_coder.h"
#include "status.h"

namespace fasdiff {

constexpr int kOldestFormatVersion = 1;
constexpr int kFormatVersion = 2;
constexpr int kMaxCodedPixels = 2048 * 2048;

struct FileHeader {
  int version = kFormatVersion;
  size_t bytes = 0;  // Of the header itself.
  int scale = 0;     // 0..3.
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

// CRC-16 with the polynomial 0x1021, most significant bit first; crc is the result for what came
// before, or 0xFFFF. It sees any three flipped bits among 32751.
uint16_t Crc16(const uint8_t* data, size_t size, uint16_t crc);

// Reads and checks the header of a whole file, its check included. The kHeader... statuses.
Status ParseFileHeader(const uint8_t* file, size_t size, FileHeader* header);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_BITSTREAM_HEADER_H_
