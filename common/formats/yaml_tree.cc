#include "common/formats/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/utf8.h"

namespace qlora {
namespace {

struct TreeSize {
  size_t nodes = 0;
  size_t bytes = 0;
};

void AddSize(const YamlNode& node, TreeSize& size) {
  ++size.nodes;
  size.bytes += node.text.size();
  for (const YamlNode& item : node.items) AddSize(item, size);
  for (const YamlNode::Entry& entry : node.entries) {
    size.bytes += entry.key.size();
    AddSize(entry.value, size);
  }
}

// Builds the tree from yaml-cpp's events. After the first error it ignores the
// rest of the (bounded) input.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(YamlDocument& document) : document_(document) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(At(mark, YamlNode::Kind::kNull), anchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag,
                YAML::anchor_t anchor, const std::string& value) override;
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override;
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag,
                       YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(At(mark, YamlNode::Kind::kSequence), tag, anchor);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag,
                  YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    Open(At(mark, YamlNode::Kind::kMap), tag, anchor);
  }
  void OnMapEnd() override { Close(); }

 private:
  struct Level {
    YamlNode node;
    YAML::anchor_t anchor;
    bool has_key = false;
  };

  bool failed() const { return !document_.errors.empty(); }
  void Fail(const YamlNode& at, std::string message) {
    if (!failed()) {
      document_.errors.push_back({at.line, at.column, std::move(message)});
    }
  }
  static YamlNode At(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    return node;
  }
  void CheckTag(const YamlNode& node, const std::string& tag) {
    if (tag.empty() || tag == "?" || tag == "!") return;
    Fail(node, absl::StrCat("the tag ", tag, " is not supported"));
  }
  void Open(YamlNode node, const std::string& tag, YAML::anchor_t anchor);
  void Close();
  void Add(YamlNode node, YAML::anchor_t anchor);
  void AddToMap(Level& level, YamlNode node);

  YamlDocument& document_;
  std::vector<Level> levels_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
  size_t nodes_ = 0;
  TreeSize expanded_;
};

void TreeBuilder::OnScalar(const YAML::Mark& mark, const std::string& tag,
                           YAML::anchor_t anchor, const std::string& value) {
  if (failed()) return;
  YamlNode node = At(mark, YamlNode::Kind::kScalar);
  CheckTag(node, tag);
  node.quoted = tag == "!";
  node.text = value;
  const bool null = !node.quoted && (value.empty() || value == "~" ||
                                     value == "null" || value == "Null");
  if (null) node.kind = YamlNode::Kind::kNull;
  Add(std::move(node), anchor);
}

void TreeBuilder::OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) {
  if (failed()) return;
  const YamlNode at = At(mark, YamlNode::Kind::kNull);
  const auto it = anchors_.find(anchor);
  if (it == anchors_.end()) {
    return Fail(at, "the alias stands inside its own anchor");
  }
  AddSize(it->second, expanded_);
  if (nodes_ + expanded_.nodes > kMaxYamlNodes ||
      expanded_.bytes > kMaxYamlBytes) {
    return Fail(at, "aliases expand to too much");
  }
  Add(it->second, 0);
}

void TreeBuilder::Open(YamlNode node, const std::string& tag,
                       YAML::anchor_t anchor) {
  if (failed()) return;
  CheckTag(node, tag);
  if (levels_.size() >= kMaxYamlDepth) {
    return Fail(node,
                absl::StrCat("nested deeper than ", kMaxYamlDepth, " levels"));
  }
  levels_.push_back({std::move(node), anchor});
}

void TreeBuilder::Close() {
  if (failed()) return;
  Level level = std::move(levels_.back());
  levels_.pop_back();
  Add(std::move(level.node), level.anchor);
}

void TreeBuilder::Add(YamlNode node, YAML::anchor_t anchor) {
  if (failed()) return;
  if (++nodes_ > kMaxYamlNodes) return Fail(node, "too many values");
  if (anchor != 0) anchors_[anchor] = node;
  if (levels_.empty()) {
    document_.root = std::move(node);
  } else if (levels_.back().node.is_sequence()) {
    levels_.back().node.items.push_back(std::move(node));
  } else {
    AddToMap(levels_.back(), std::move(node));
  }
}

void TreeBuilder::AddToMap(Level& level, YamlNode node) {
  if (level.has_key) {
    level.node.entries.back().value = std::move(node);
    level.has_key = false;
    return;
  }
  if (!node.is_scalar()) return Fail(node, "a key must be a plain word");
  if (const YamlNode* earlier = level.node.Find(node.text)) {
    return Fail(node, absl::StrCat("the key '", node.text,
                                   "' appears twice (first in line ",
                                   earlier->line, ")"));
  }
  level.node.entries.push_back({node.text, node.line, node.column, {}});
  level.has_key = true;
}

// Offset of the first byte that is not UTF-8, npos if there is none.
size_t FindInvalidUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text.substr(i));
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

// yaml-cpp's message in the words of someone who writes YAML, not parsers.
std::string PlainWords(const std::string& message) {
  namespace yaml = YAML::ErrorMsg;
  static const std::pair<const char*, const char*> kWords[] = {
      {yaml::END_OF_MAP, "this line is not indented like the keys above it"},
      {yaml::END_OF_SEQ,
       "this line is not indented like the list above it, whose items begin "
       "with '- '"},
      {yaml::END_OF_MAP_FLOW, "the '{' has no '}' where it should end"},
      {yaml::END_OF_SEQ_FLOW, "the '[' has no ']' where it should end"},
      {yaml::FLOW_END, "a bracket is closed that was not opened"},
      {yaml::MAP_VALUE,
       "no 'key: value' may stand here: check the indentation, and quote a "
       "text that has ': ' in it"},
      {yaml::MAP_KEY, "no key may stand here; check the indentation"},
      {yaml::BLOCK_ENTRY,
       "no list item may stand here: begin a list on a line of its own"},
      {yaml::EOF_IN_SCALAR, "the quote is not closed"},
      {yaml::DOC_IN_SCALAR, "the quote is not closed"},
      {yaml::UNKNOWN_TOKEN, "no value begins with this character; quote it"},
      {yaml::UNKNOWN_ANCHOR, "the alias has no anchor before it"},
  };
  for (const auto& [theirs, ours] : kWords) {
    if (message == theirs) return ours;
  }
  return message;
}

// A tab that indents one of the lines around the one where parsing failed.
std::optional<YamlError> FindTab(std::string_view text, int failed_line) {
  int line = 1;
  while (!text.empty() && line <= failed_line + 1) {
    const size_t end = std::min(text.find('\n'), text.size());
    const size_t indent = text.substr(0, end).find_first_not_of(" \t");
    const size_t tab = text.substr(0, std::min(indent, end)).find('\t');
    if (line >= failed_line - 1 && tab != std::string_view::npos &&
        indent < end) {
      return YamlError{line, static_cast<int>(tab) + 1,
                       "the line is indented with a tab; YAML takes blanks "
                       "only"};
    }
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line;
  }
  return std::nullopt;
}

void ParseEvents(std::string_view text, YamlDocument& document) {
  std::istringstream stream{std::string(text)};
  // yaml-cpp reports by exceptions; they end here.
  try {
    YAML::Parser parser(stream);
    TreeBuilder builder(document);
    if (!parser.HandleNextDocument(builder)) return;
    YamlDocument rest;
    TreeBuilder ignored(rest);
    if (document.errors.empty() && parser.HandleNextDocument(ignored)) {
      document.errors.push_back(
          {rest.root.line, 1, "a second document follows; only one is read"});
    }
  } catch (const YAML::Exception& error) {
    const int line = error.mark.line + 1;
    document.errors.push_back(
        FindTab(text, line)
            .value_or(
                YamlError{line, error.mark.column + 1, PlainWords(error.msg)}));
  } catch (const std::exception& error) {
    document.errors.push_back({0, 0, error.what()});
  }
}

// Words that read the same in every place and as whatever type they had.
bool IsPlain(const std::string& text) {
  if (text.empty() || text == "-" || text == "." || text.back() == ':') {
    return false;
  }
  if (!absl::ascii_isalnum(text[0]) && text[0] != '/' && text[0] != '.' &&
      text[0] != '-' && text[0] != '+') {
    return false;
  }
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(c) || absl::StrContains("_./:+-", c);
  });
}

// Whether an unquoted string of this text would read as another type.
bool LooksTyped(const std::string& text) {
  const std::string lower = absl::AsciiStrToLower(text);
  return absl::ascii_isdigit(text[0]) || text[0] == '-' || text[0] == '+' ||
         text[0] == '.' || lower == "true" || lower == "false" ||
         lower == "null" || lower == "yes" || lower == "no";
}

std::string ScalarText(const std::string& text, bool quoted) {
  if (IsPlain(text) && !(quoted && LooksTyped(text))) return text;
  return nlohmann::json(text).dump(-1, ' ', false,
                                   nlohmann::json::error_handler_t::replace);
}

void WriteNode(const YamlNode& node, const std::string& indent, bool after_dash,
               std::string& out);

// "value\n" after "key:" or "-".
void WriteValue(const YamlNode& value, const std::string& indent, bool in_list,
                std::string& out) {
  switch (value.kind) {
    case YamlNode::Kind::kNull:
      out += " null\n";
      return;
    case YamlNode::Kind::kScalar:
      out += " " + ScalarText(value.text, value.quoted) + "\n";
      return;
    case YamlNode::Kind::kSequence:
    case YamlNode::Kind::kMap:
      if (value.items.empty() && value.entries.empty()) {
        out += value.is_map() ? " {}\n" : " []\n";
      } else if (in_list) {
        out += " ";
        WriteNode(value, indent + "  ", true, out);
      } else {
        out += "\n";
        WriteNode(value, indent + "  ", false, out);
      }
  }
}

// A map or sequence with something in it; the first line's indent is there
// already when it follows a dash.
void WriteNode(const YamlNode& node, const std::string& indent, bool after_dash,
               std::string& out) {
  bool first = after_dash;
  for (const YamlNode& item : node.items) {
    if (!first) out += indent;
    first = false;
    out += "-";
    WriteValue(item, indent, true, out);
  }
  for (const YamlNode::Entry& entry : node.entries) {
    if (!first) out += indent;
    first = false;
    out += ScalarText(entry.key, false) + ":";
    WriteValue(entry.value, indent, false, out);
  }
}

}  // namespace

YamlNode YamlNode::Scalar(std::string text, bool quoted) {
  YamlNode node;
  node.kind = Kind::kScalar;
  node.text = std::move(text);
  node.quoted = quoted;
  return node;
}

const YamlNode* YamlNode::Find(std::string_view key) const {
  for (const Entry& entry : entries) {
    if (entry.key == key) return &entry.value;
  }
  return nullptr;
}

YamlNode* YamlNode::Find(std::string_view key) {
  return const_cast<YamlNode*>(std::as_const(*this).Find(key));
}

YamlDocument ParseYaml(std::string_view text) {
  YamlDocument document;
  if (text.size() > kMaxYamlBytes) {
    document.errors.push_back(
        {0, 0,
         absl::StrCat("the file has ", text.size(), " bytes; at most ",
                      kMaxYamlBytes, " are read")});
    return document;
  }
  const size_t bad = std::min(FindInvalidUtf8(text), text.find('\0'));
  if (bad != std::string_view::npos) {
    const std::string_view before = text.substr(0, bad);
    const int line = 1 + std::count(before.begin(), before.end(), '\n');
    document.errors.push_back({line, 0, "not UTF-8 text"});
    return document;
  }
  ParseEvents(text, document);
  if (!document.errors.empty()) return document;
  // yaml-cpp takes a quote that is never closed for one that ends with the
  // file's last line break.
  YamlDocument cut;
  ParseEvents(text.substr(0, text.find_last_not_of("\r\n \t") + 1), cut);
  if (!cut.errors.empty()) document.errors = std::move(cut.errors);
  return document;
}

std::string WriteYaml(const YamlNode& root) {
  if (root.is_scalar()) return ScalarText(root.text, root.quoted) + "\n";
  if (root.is_null()) return "null\n";
  if (root.items.empty() && root.entries.empty()) {
    return root.is_map() ? "{}\n" : "[]\n";
  }
  std::string out;
  WriteNode(root, "", false, out);
  return out;
}

}  // namespace qlora
