// Where the real test data lies, which is not part of the repository.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace qlora {

// QLORA_SHARED_DATA, or <source directory>/../shared/data.
inline std::string SharedData() {
  const char* set = std::getenv("QLORA_SHARED_DATA");
  if (set != nullptr) return set;
  return std::string(QLORA_SOURCE_DIR) + "/../shared/data";
}

}  // namespace qlora

#define SKIP_WITHOUT_SHARED_DATA()                                    \
  if (!std::filesystem::exists(::qlora::SharedData() + "/README.md")) \
  GTEST_SKIP() << "no shared data in " << ::qlora::SharedData()       \
               << " (set QLORA_SHARED_DATA)"
