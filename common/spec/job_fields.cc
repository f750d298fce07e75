// Reads and writes the value of one key, by the type of its field.
#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/format.h"
#include "common/spec/job_keys.h"
#include "common/spec/job_values.h"

namespace qlora {
namespace {

constexpr size_t kMaxListItems = 1000;
constexpr size_t kMaxStringBytes = 64 << 10;

std::string Words(const std::vector<std::string_view>& words) {
  return absl::StrJoin(words, ", ", [](std::string* out, std::string_view w) {
    out->append(w);
  });
}

std::string_view KindName(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return "a single value";
    case YamlNode::Kind::kSequence:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
  }
  return "";
}

std::string Shown(const YamlNode& node) {
  if (!node.is_scalar()) return std::string(KindName(node));
  const std::string text = node.text.substr(0, 80);
  return node.quoted ? absl::StrCat("the string \"", text, "\"")
                     : absl::StrCat("'", text, "'");
}

// Reads a value into a spec; one overload a field type.
class Setter {
 public:
  Setter(const YamlNode& value, JobSpec& spec) : value_(value), spec_(spec) {}

  std::vector<KeyError> errors;

  void operator()(const IntegerField& f) {
    const std::optional<int64_t> number =
        IsPlain() ? ParseInteger(value_.text) : std::nullopt;
    if (!number.has_value() || *number < f.minimum || *number > f.maximum) {
      return Fail();
    }
    std::visit(
        [&](auto field) {
          *field(spec_) =
              static_cast<std::remove_pointer_t<decltype(field(spec_))>>(
                  *number);
        },
        f.field);
  }
  void operator()(const NumberField& f) {
    const std::optional<double> number =
        IsPlain() ? ParseNumber(value_.text) : std::nullopt;
    if (!number.has_value() || *number < f.minimum || *number > f.maximum ||
        (f.open_minimum && *number == f.minimum) ||
        (f.open_maximum && *number == f.maximum)) {
      return Fail();
    }
    *f.field(spec_) = *number;
  }
  void operator()(const BoolField& f) {
    if (!IsPlain() || (value_.text != "true" && value_.text != "false")) {
      return Fail();
    }
    *f.field(spec_) = value_.text == "true";
  }
  void operator()(const StringField& f) {
    if (!IsString(value_)) return Fail();
    *f.field(spec_) = value_.text;
  }
  void operator()(const ChoiceField& f) {
    const auto it = value_.is_scalar()
                        ? std::find(f.words.begin(), f.words.end(), value_.text)
                        : f.words.end();
    if (it == f.words.end()) return Fail();
    f.set(spec_, static_cast<int>(it - f.words.begin()));
  }
  void operator()(const ListField& f);
  void operator()(const MapField& f);
  void operator()(const PeriodField& f) {
    const std::optional<Period> period =
        value_.is_scalar() ? ParsePeriod(value_.text) : std::nullopt;
    if (!period.has_value() || (period->never() && !f.allow_never)) {
      return Fail();
    }
    *f.field(spec_) = *period;
  }
  void operator()(const DurationField& f) {
    const std::optional<absl::Duration> duration =
        value_.is_scalar() ? ParseDuration(value_.text) : std::nullopt;
    if (!duration.has_value()) return Fail();
    *f.field(spec_) = *duration;
  }
  void operator()(const BytesField& f) {
    const std::optional<int64_t> bytes =
        value_.is_scalar() ? ParseBytes(value_.text) : std::nullopt;
    if (!bytes.has_value()) return Fail();
    *f.field(spec_) = *bytes;
  }
  void operator()(const SourcesField& f);

 private:
  bool IsPlain() const { return value_.is_scalar() && !value_.quoted; }
  static bool IsString(const YamlNode& node) {
    return node.is_scalar() && !node.text.empty() &&
           node.text.size() <= kMaxStringBytes;
  }
  // The type is wrong; the caller says what is right.
  void Fail() { errors.push_back({&value_, "", ""}); }
  void FailAt(const YamlNode& at, std::string subpath, std::string message) {
    errors.push_back({&at, std::move(subpath), std::move(message)});
  }
  void ReadSource(const YamlNode& node, const std::string& subpath,
                  std::vector<DataSource>& sources);

  const YamlNode& value_;
  JobSpec& spec_;
};

void Setter::operator()(const ListField& f) {
  std::vector<std::string> list;
  if (value_.is_scalar() && value_.text == f.empty_word) {
    f.field(spec_)->clear();
    return;
  }
  const std::vector<YamlNode> one = {value_};
  const std::vector<YamlNode>& items =
      value_.is_sequence() ? value_.items : one;
  if (value_.is_map() || items.empty() || items.size() > kMaxListItems) {
    return Fail();
  }
  for (const YamlNode& item : items) {
    if (!IsString(item) ||
        (!f.words.empty() && std::find(f.words.begin(), f.words.end(),
                                       item.text) == f.words.end())) {
      return Fail();
    }
    list.push_back(item.text);
  }
  *f.field(spec_) = std::move(list);
}

void Setter::operator()(const MapField& f) {
  if (!value_.is_map() || value_.entries.size() > kMaxListItems) return Fail();
  std::map<std::string, std::string> map;
  for (const YamlNode::Entry& entry : value_.entries) {
    if (!entry.value.is_scalar() || entry.value.text.size() > 256 ||
        entry.key.size() > 256) {
      FailAt(entry.value, "." + entry.key.substr(0, 80),
             "must be a string of at most 256 bytes");
      continue;
    }
    map[entry.key] = entry.value.text;
  }
  *f.field(spec_) = std::move(map);
}

void Setter::ReadSource(const YamlNode& node, const std::string& subpath,
                        std::vector<DataSource>& sources) {
  const YamlNode* path = node.is_map() ? node.Find("path") : &node;
  const YamlNode* format = node.is_map() ? node.Find("format") : nullptr;
  for (const YamlNode::Entry& entry : node.entries) {
    if (entry.key == "path" || entry.key == "format") continue;
    FailAt(entry.value, absl::StrCat(subpath, ".", entry.key.substr(0, 80)),
           "unknown key; a source has path and format");
  }
  if (path == nullptr || !IsString(*path) || path->text.size() > 4096) {
    return FailAt(node, subpath + ".path", "must name a file or dataset:NAME");
  }
  DataSource source{path->text};
  if (format == nullptr) {
    if (!absl::EndsWith(source.path, ".txt")) {
      return FailAt(node, subpath + ".format",
                    absl::StrCat("is required: one of ", FormatNames()));
    }
    source.format = DataFormat::kText;
  } else {
    const std::optional<DataFormat> parsed =
        format->is_scalar() ? ParseFormat(format->text) : std::nullopt;
    if (!parsed.has_value()) {
      return FailAt(*format, subpath + ".format",
                    absl::StrCat("must be one of ", FormatNames(), ", not ",
                                 Shown(*format)));
    }
    source.format = *parsed;
  }
  sources.push_back(std::move(source));
}

void Setter::operator()(const SourcesField& f) {
  std::vector<DataSource> sources;
  if (value_.is_null()) return Fail();
  if (!value_.is_sequence()) {
    ReadSource(value_, "", sources);
  } else if (value_.items.empty() || value_.items.size() > kMaxListItems) {
    return Fail();
  }
  for (size_t i = 0; i < value_.items.size(); ++i) {
    ReadSource(value_.items[i], absl::StrCat("[", i, "]"), sources);
  }
  *f.field(spec_) = std::move(sources);
}

// The value as YAML.
class Getter {
 public:
  explicit Getter(JobSpec& spec) : spec_(spec) {}
  using Result = std::optional<YamlNode>;

  Result operator()(const IntegerField& f) {
    return std::visit(
        [&](auto field) {
          return YamlNode::Scalar(absl::StrCat(*field(spec_)));
        },
        f.field);
  }
  Result operator()(const NumberField& f) {
    return YamlNode::Scalar(FormatNumber(*f.field(spec_)));
  }
  Result operator()(const BoolField& f) {
    return YamlNode::Scalar(*f.field(spec_) ? "true" : "false");
  }
  Result operator()(const StringField& f) { return String(*f.field(spec_)); }
  Result operator()(const ChoiceField& f) {
    return YamlNode::Scalar(std::string(f.words[f.get(spec_)]));
  }
  Result operator()(const ListField& f) {
    if (f.field(spec_)->empty()) return String(std::string(f.empty_word));
    YamlNode node;
    node.kind = YamlNode::Kind::kSequence;
    for (const std::string& item : *f.field(spec_)) {
      node.items.push_back(YamlNode::Scalar(item, /*quoted=*/true));
    }
    return node;
  }
  Result operator()(const MapField& f) {
    if (f.field(spec_)->empty()) return std::nullopt;
    YamlNode node;
    node.kind = YamlNode::Kind::kMap;
    for (const auto& [key, value] : *f.field(spec_)) {
      node.entries.push_back({key, 0, 0, YamlNode::Scalar(value, true)});
    }
    return node;
  }
  Result operator()(const PeriodField& f) {
    if (f.field(spec_)->never()) return std::nullopt;
    return YamlNode::Scalar(FormatPeriod(*f.field(spec_)));
  }
  Result operator()(const DurationField& f) {
    if (*f.field(spec_) == absl::ZeroDuration()) return std::nullopt;
    return YamlNode::Scalar(absl::FormatDuration(*f.field(spec_)));
  }
  Result operator()(const BytesField& f) {
    if (*f.field(spec_) == 0) return std::nullopt;
    return YamlNode::Scalar(absl::StrCat(*f.field(spec_)));
  }
  Result operator()(const SourcesField& f) {
    if (f.field(spec_)->empty()) return std::nullopt;
    YamlNode list;
    list.kind = YamlNode::Kind::kSequence;
    for (const DataSource& source : *f.field(spec_)) {
      YamlNode node;
      node.kind = YamlNode::Kind::kMap;
      node.entries.push_back({"path", 0, 0, *String(source.path)});
      node.entries.push_back(
          {"format", 0, 0, *String(std::string(FormatName(source.format)))});
      list.items.push_back(std::move(node));
    }
    return list;
  }

 private:
  static Result String(const std::string& text) {
    if (text.empty()) return std::nullopt;
    return YamlNode::Scalar(text, /*quoted=*/true);
  }
  JobSpec& spec_;
};

struct Describer {
  std::string operator()(const IntegerField& f) {
    if (f.maximum >= 1'000'000'000'000) {
      return absl::StrCat("an integer of at least ", f.minimum);
    }
    return absl::StrCat("an integer from ", f.minimum, " to ", f.maximum);
  }
  std::string operator()(const NumberField& f) {
    std::string text =
        absl::StrCat("a number ", f.open_minimum ? "above " : "of at least ",
                     FormatNumber(f.minimum));
    if (f.maximum <= 1e6) {
      absl::StrAppend(&text, f.open_maximum ? " and below " : " and at most ",
                      FormatNumber(f.maximum));
    }
    return text;
  }
  std::string operator()(const BoolField&) { return "true or false"; }
  std::string operator()(const StringField&) { return "a string"; }
  std::string operator()(const ChoiceField& f) {
    return absl::StrCat(f.words.size() > 1 ? "one of " : "", Words(f.words));
  }
  std::string operator()(const ListField& f) {
    if (!f.words.empty()) return "a list of " + Words(f.words);
    return absl::StrCat(std::string(f.empty_word), " or a list of strings");
  }
  std::string operator()(const MapField&) { return "a map of strings"; }
  std::string operator()(const PeriodField& f) {
    return absl::StrCat("a period: 200, \"200 steps\", \"0.5 epochs\"",
                        f.allow_never ? ", \"30m\" or never" : " or \"30m\"");
  }
  std::string operator()(const DurationField&) {
    return "a length of time like \"2h\" or \"90m\"";
  }
  std::string operator()(const BytesField&) {
    return "a number of bytes like \"40GiB\"";
  }
  std::string operator()(const SourcesField&) {
    return "a list of {path, format}";
  }
};

}  // namespace

std::vector<KeyError> SetJobKey(const JobKey& key, const YamlNode& value,
                                JobSpec& spec) {
  Setter setter(value, spec);
  std::visit(setter, key.field);
  for (KeyError& error : setter.errors) {
    if (!error.message.empty()) continue;
    error.message =
        absl::StrCat("must be ", DescribeType(key), ", not ", Shown(value));
  }
  return std::move(setter.errors);
}

std::optional<YamlNode> GetJobKey(const JobKey& key, const JobSpec& spec) {
  // The table has one accessor a field, for reading and writing.
  JobSpec copy = spec;
  return std::visit(Getter(copy), key.field);
}

std::string DescribeType(const JobKey& key) {
  return std::visit(Describer(), key.field);
}

std::string DefaultText(const JobKey& key) {
  const std::optional<YamlNode> value = GetJobKey(key, JobSpec());
  if (!value.has_value() || key.required) return "";
  std::string text;
  for (const YamlNode& item : value->items) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", item.text);
  }
  return value->is_sequence() ? "[" + text + "]" : value->text;
}

}  // namespace qlora
