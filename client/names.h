// Names in the registries of models and datasets. Pure functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace qlora::client {

// The nearest name that a registry takes (1 to 63 of a-z, 0-9, '.', '_', '-',
// beginning with a letter or digit): "llama-2-7b" for "Llama 2 7B". Empty if
// nothing is left of it.
std::string RegistryName(const std::string& text);

// The name to register: `name` as it was given, else what RegistryName makes of
// `from`. A usage error names the flag if neither is a name.
absl::StatusOr<std::string> ChooseName(const std::string& name,
                                       const std::string& from);

}  // namespace qlora::client
