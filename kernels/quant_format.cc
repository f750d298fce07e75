#include "kernels/quant_format.h"

#include "kernels/quant_tables.h"

namespace qlora::kernels {

constinit const float (&kNf4Values)[16] = kNf4Table.values;
constinit const float (&kNf4Thresholds)[15] = kNf4ThresholdTable.values;
constinit const float (&kFp4Values)[16] = kFp4Table.values;
constinit const float (&kFp4Thresholds)[7] = kFp4ThresholdTable.values;
constinit const float (&kDynamicMapSigned)[256] = kSignedMapTable.values;
constinit const float (&kDynamicMapUnsigned)[256] = kUnsignedMapTable.values;

const float* FourBitValues(FourBitType type) {
  return type == FourBitType::kNf4 ? kNf4Values : kFp4Values;
}

const float* DynamicMapValues(DynamicMap map) {
  return map == DynamicMap::kSigned ? kDynamicMapSigned : kDynamicMapUnsigned;
}

}  // namespace qlora::kernels
