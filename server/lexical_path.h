// Paths as texts.
#pragma once

#include <filesystem>
#include <string>

namespace qlora::server {

// "/a/b" for "/a/./x/../b/": without "..", which past a link leads elsewhere
// than its text says, so that what is checked is what is read and kept.
inline std::string LexicalPath(const std::filesystem::path& path) {
  const std::filesystem::path normal = path.lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).string();
}

}  // namespace qlora::server
