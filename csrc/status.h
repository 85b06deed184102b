// What every function of the core returns: no exceptions, no printing, no aborting on bad data.
#ifndef FASDIFF_CSRC_STATUS_H_
#define FASDIFF_CSRC_STATUS_H_

namespace fasdiff {

enum class Status : int {
  kOk = 0,

  // The caller's arguments.
  kEmptyImage,
  kImageTooLarge,
  kBadBandShape,
  kBadLatentShape,
  kBadQuality,
  kBadTableIndex,
  kSymbolOutOfRange,
  kPriceOutOfRange,

  // The environment variable FASDIFF_CPU.
  kBadCpuPath,

  // The file header.
  kHeaderTooShort,
  kHeaderBadMagic,
  kHeaderBadVersion,
  kHeaderReservedBits,
  kHeaderBadQuality,
  kHeaderBadChecksum,
  kHeaderTooManyPixels,

  // The range-coded payload.
  kStreamTruncated,
  kStreamTrailingBytes,
  kStreamInvalidCode,
  kStreamEscapeTooLong,
  kStreamSymbolOutOfRange,

  // The integer entropy model file.
  kModelTruncated,
  kModelTrailingBytes,
  kModelBadMagic,
  kModelBadCounts,
  kModelBadGroups,
  kModelBadShift,
  kModelBadTable,
  kModelBadTableSum,
  kModelBadTableReference,
  kModelBadQuantiser,
  kModelBadLayer,
  kModelBadLayerChain,
  kModelBadBias,
  kModelAccumulatorTooWide,
};

// True for the statuses that blame the coded file (header or payload).
bool IsStreamError(Status status);

// True for the statuses that blame the entropy model file.
bool IsModelError(Status status);

// The reason in one line of English, a string literal; never null.
const char* StatusMessage(Status status);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_STATUS_H_
