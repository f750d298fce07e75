// The one table of the job file's keys: parser, defaults, `explain`,
// docs/job-file.md and the JSON Schema all come from it. Immutable; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/formats/yaml_tree.h"
#include "common/spec/job_spec.h"

namespace qlora {

// Where a value lives in a JobSpec.
template <typename T>
using FieldOf = T* (*)(JobSpec&);

// An integer within [minimum, maximum].
struct IntegerField {
  std::variant<FieldOf<int>, FieldOf<int64_t>, FieldOf<uint64_t>> field;
  int64_t minimum;
  int64_t maximum;
};
// A number within [minimum, maximum], or without the ends that are open.
struct NumberField {
  FieldOf<double> field;
  double minimum;
  double maximum;
  bool open_minimum = false;
  bool open_maximum = false;
};
struct BoolField {
  FieldOf<bool> field;
};
struct StringField {
  FieldOf<std::string> field;
};
// One of some words; read and written as an index into them.
struct ChoiceField {
  int (*get)(const JobSpec&);
  void (*set)(JobSpec&, int);
  std::vector<std::string_view> words;
};
// A list of strings; a single string counts as a list of one.
struct ListField {
  FieldOf<std::vector<std::string>> field;
  // The only ones allowed; empty: any.
  std::vector<std::string_view> words;
  // What the empty list is written as.
  std::string_view empty_word;
};
struct MapField {
  FieldOf<std::map<std::string, std::string>> field;
};
struct PeriodField {
  FieldOf<Period> field;
  bool allow_never;
};
struct DurationField {
  FieldOf<absl::Duration> field;
};
// Bytes, with a unit as in "40GiB".
struct BytesField {
  FieldOf<int64_t> field;
};
struct SourcesField {
  FieldOf<std::vector<DataSource>> field;
};

using KeyField = std::variant<IntegerField, NumberField, BoolField, StringField,
                              ChoiceField, ListField, MapField, PeriodField,
                              DurationField, BytesField, SourcesField>;

struct JobKey {
  // "train.learning_rate".
  std::string_view path;
  KeyField field;
  // One sentence or two.
  std::string_view help;
  // "tokens", "rows"; may be empty.
  std::string_view unit = {};
  // What transformers, TRL or PEFT call it, separated by ", "; may be empty.
  std::string_view also_known_as = {};
  // Said instead of the default's plain text; may be empty.
  std::string_view default_note = {};
  bool required = false;
};

// In the order of the documentation.
std::span<const JobKey> JobKeys();

// Null if there is none.
const JobKey* FindJobKey(std::string_view path);

// "" at the top, "train", ...: true if some key begins so.
bool IsJobSection(std::string_view path);

// The key or section that was probably meant: "train.epochs" for "train.epoch"
// or for "train.num_train_epochs". Empty if nothing is near.
std::string SuggestJobKey(std::string_view unknown_path);

// Sets the key's value in spec. On failure the message says what is allowed;
// `at` is the offending node.
struct KeyError {
  const YamlNode* at;
  // Appended to the key's path: "[0].format"; may be empty.
  std::string subpath;
  std::string message;
};
std::vector<KeyError> SetJobKey(const JobKey& key, const YamlNode& value,
                                JobSpec& spec);

// "--set KEY=VALUE", cut where it is long.
std::string SetFlag(std::string_view assignment);

// Sets KEY=VALUE pairs in a job file's tree, as ApplyOverrides does. What they
// set has line 0. The error of the first that cannot be set.
std::optional<SpecError> AssignKeys(
    YamlNode& root, const std::vector<std::string>& assignments);

// The key's value as YAML; nullopt where it says nothing (an empty string or
// list, a period of never).
std::optional<YamlNode> GetJobKey(const JobKey& key, const JobSpec& spec);

// "an integer from 1 to 4096", for errors and documentation.
std::string DescribeType(const JobKey& key);

// "16", "" if there is none.
std::string DefaultText(const JobKey& key);

// What `qloractl explain PATH` prints: one key, a section's keys, or all for
// "". NotFound with a suggestion.
absl::StatusOr<std::string> ExplainJobKey(std::string_view path);

// docs/job-file.md and docs/job-file.schema.json.
std::string JobFileMarkdown();
std::string JobFileJsonSchema();

}  // namespace qlora
