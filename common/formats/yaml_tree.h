// YAML as a plain tree that remembers where everything stood, for files that
// people write and that are checked strictly. Untrusted input: size, depth and
// the expansion of aliases are bounded. Values only; any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qlora {

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  Kind kind = Kind::kNull;
  // From 1; 0 for a node that was made, not read.
  int line = 0;
  int column = 0;
  // kScalar.
  std::string text;
  // kScalar: written in quotes or as a block, so it can only be a string.
  bool quoted = false;
  // kSequence.
  std::vector<YamlNode> items;
  // kMap, in the order of the file, without duplicates.
  struct Entry;
  std::vector<Entry> entries;

  static YamlNode Scalar(std::string text, bool quoted = false);
  bool is_null() const { return kind == Kind::kNull; }
  bool is_scalar() const { return kind == Kind::kScalar; }
  bool is_sequence() const { return kind == Kind::kSequence; }
  bool is_map() const { return kind == Kind::kMap; }
  // Null if this is no map or has no such key.
  YamlNode* Find(std::string_view key);
  const YamlNode* Find(std::string_view key) const;
};

struct YamlNode::Entry {
  std::string key;
  int line = 0;
  int column = 0;
  YamlNode value;
};

struct YamlError {
  int line = 0;
  int column = 0;
  std::string message;
};

struct YamlDocument {
  YamlNode root;
  // Not usable if there are any.
  std::vector<YamlError> errors;
};

inline constexpr size_t kMaxYamlBytes = 256 << 10;
inline constexpr size_t kMaxYamlDepth = 32;
inline constexpr size_t kMaxYamlNodes = 20'000;

// One document of at most kMaxYamlBytes in UTF-8. Anchors and aliases are
// expanded; duplicate keys, keys that are no scalars, application tags and a
// second document are errors.
YamlDocument ParseYaml(std::string_view text);

// Block style, two spaces; parses to the same tree.
std::string WriteYaml(const YamlNode& root);

}  // namespace qlora
