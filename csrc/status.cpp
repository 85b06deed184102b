#include "status.h"

namespace fasdiff {

bool IsStreamError(Status status) {
  return status >= Status::kHeaderTooShort && status <= Status::kStreamSymbolOutOfRange;
}

bool IsModelError(Status status) { return status >= Status::kModelTruncated; }

const char* StatusMessage(Status status) {
  switch (status) {
    case Status::kOk:
      return "no error";
    case Status::kEmptyImage:
      return "the image has no pixels";
    case Status::kImageTooLarge:
      return "the image has a side of more than 65536 pixels";
    case Status::kBadBandShape:
      return "the bands do not have the padded size of the image divided by four";
    case Status::kBadLatentShape:
      return "a side of the latent is outside 1..256";
    case Status::kBadQuality:
      return "the quality is outside 0..252 quarter steps";
    case Status::kBadTableIndex:
      return "a table index is not smaller than the number of tables";
    case Status::kSymbolOutOfRange:
      return "a symbol is outside -32768..32767";
    case Status::kPriceOutOfRange:
      return "a price is outside 0..65535";
    case Status::kBadCpuPath:
      return "FASDIFF_CPU names an instruction set that this build or machine does not have";
    case Status::kHeaderTooShort:
      return "truncated: the file is shorter than its header";
    case Status::kHeaderBadMagic:
      return "the first byte is not 0xFA: not a FaSDiff-Edge file";
    case Status::kHeaderBadVersion:
      return "the format version is not 1";
    case Status::kHeaderReservedBits:
      return "a reserved header bit is set";
    case Status::kHeaderBadQuality:
      return "the header's quality is above 252";
    case Status::kHeaderBadChecksum:
      return "the CRC does not match: the file is damaged or incomplete";
    case Status::kHeaderTooManyPixels:
      return "the coded size is over 2048 x 2048 pixels";
    case Status::kStreamTruncated:
      return "the payload ends before the last symbol";
    case Status::kStreamTrailingBytes:
      return "bytes are left after the last symbol";
    case Status::kStreamInvalidCode:
      return "the payload points outside every symbol's interval";
    case Status::kStreamEscapeTooLong:
      return "an escape code is longer than 18 prefix bits";
    case Status::kStreamSymbolOutOfRange:
      return "a decoded symbol is outside -32768..32767";
    case Status::kModelTruncated:
      return "the entropy model file is too short";
    case Status::kModelTrailingBytes:
      return "the entropy model file has bytes after its last layer";
    case Status::kModelBadMagic:
      return "the entropy model file does not start with its magic";
    case Status::kModelBadCounts:
      return "a count in the entropy model file is out of range";
    case Status::kModelBadGroups:
      return "the group sizes do not add up to the channels of y, a scan is outside 1..3, or a "
             "start is "
             "outside 0..252, below the one before it, or not 0 for the first group";
    case Status::kModelBadShift:
      return "a shift in the entropy model file is out of range";
    case Status::kModelBadTable:
      return "a table has no symbols, too many, or a frequency of zero";
    case Status::kModelBadTableSum:
      return "the frequencies of a table do not add up to 65536";
    case Status::kModelBadTableReference:
      return "a component of s or z names a table that does not exist";
    case Status::kModelBadQuantiser:
      return "a step or gain in the entropy model file is out of range";
    case Status::kModelBadLayer:
      return "a layer has a size, shift or limit out of range";
    case Status::kModelBadLayerChain:
      return "the channels of a layer do not fit its neighbours";
    case Status::kModelBadBias:
      return "a bias is 2^24 or more in magnitude";
    case Status::kModelAccumulatorTooWide:
      return "a layer can overflow its 32-bit accumulator";
  }
  return "unknown status";
}

}  // namespace fasdiff
