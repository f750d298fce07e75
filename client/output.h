// Prints protobuf messages the way -o asks for. Not thread-safe.
#pragma once

#include <google/protobuf/message.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/terminal.h"

namespace qlora::client {

enum class OutputFormat { kTable, kWide, kJson, kYaml, kName, kJsonl };

// Read by programs: what is no result then goes to standard error.
inline bool IsForPrograms(OutputFormat format) {
  return format != OutputFormat::kTable && format != OutputFormat::kWide;
}

// InvalidArgument (usage) listing the formats.
absl::StatusOr<OutputFormat> ParseOutputFormat(const std::string& text);

struct Output {
  std::ostream* out = nullptr;
  OutputFormat format = OutputFormat::kTable;
  Terminal terminal;
};

// The proto JSON mapping, over several lines or on one: every field but unset
// messages, whatever its value; without the marks for reading on.
absl::StatusOr<std::string> ToJson(const google::protobuf::Message& message,
                                   bool one_line);
// The same content as YAML; long texts as blocks.
absl::StatusOr<std::string> ToYaml(const google::protobuf::Message& message);

// Prints one record of several as it comes: JSON on one line, or a YAML
// document; name is a usage error.
absl::Status PrintRecord(const Output& output,
                         const google::protobuf::Message& record);

// Prints one JSON document (text) as -o asks for: json, jsonl or yaml; name is
// a usage error.
absl::Status PrintJson(const Output& output, const std::string& json);

// Cells in columns two blanks apart, as wide as needed. Trailing blanks are
// cut, and so is what follows the first line of a cell.
class Table {
 public:
  struct Header {
    std::string title;
    bool right = false;
  };
  explicit Table(std::vector<Header> headers) : headers_(std::move(headers)) {}
  void AddRow(std::vector<std::string> cells) {
    for (std::string& cell : cells) {
      const size_t end = cell.find('\n');
      if (end != std::string::npos) cell.replace(end, cell.npos, " ...");
    }
    rows_.push_back(std::move(cells));
  }
  // The header in bold with color.
  std::string Format(bool color) const;

 private:
  std::vector<Header> headers_;
  std::vector<std::vector<std::string>> rows_;
};

// How one kind of message is shown in a table.
template <typename T>
struct Column {
  std::string title;
  std::function<std::string(const T&)> cell;
  bool wide_only = false;
  bool right = false;
};
template <typename T>
struct View {
  std::vector<Column<T>> columns;
  std::function<std::string(const T&)> name;
};

template <typename T, typename Items>
std::string FormatTable(const View<T>& view, const Items& items, bool wide,
                        bool color) {
  std::vector<const Column<T>*> shown;
  std::vector<Table::Header> headers;
  for (const Column<T>& column : view.columns) {
    if (column.wide_only && !wide) continue;
    shown.push_back(&column);
    headers.push_back({column.title, column.right});
  }
  Table table(std::move(headers));
  for (const T& item : items) {
    std::vector<std::string> cells;
    for (const Column<T>* column : shown) cells.push_back(column->cell(item));
    table.AddRow(std::move(cells));
  }
  return table.Format(color);
}

// The text of `message`, whose repeated field `items` a table, names and JSON
// lines show one by one.
template <typename T, typename Items>
absl::StatusOr<std::string> FormatList(const Output& output,
                                       const google::protobuf::Message& message,
                                       const Items& items,
                                       const View<T>& view) {
  std::string text;
  switch (output.format) {
    case OutputFormat::kTable:
    case OutputFormat::kWide:
      return FormatTable(view, items, output.format == OutputFormat::kWide,
                         output.terminal.color);
    case OutputFormat::kJson:
      return ToJson(message, /*one_line=*/false);
    case OutputFormat::kYaml:
      return ToYaml(message);
    case OutputFormat::kName:
      for (const T& item : items) absl::StrAppend(&text, view.name(item), "\n");
      return text;
    case OutputFormat::kJsonl:
      for (const T& item : items) {
        absl::StatusOr<std::string> line = ToJson(item, /*one_line=*/true);
        if (!line.ok()) return line;
        text += *line;
      }
      return text;
  }
  return text;
}

// FormatList, printed.
template <typename T, typename Items>
absl::Status PrintList(const Output& output,
                       const google::protobuf::Message& message,
                       const Items& items, const View<T>& view) {
  absl::StatusOr<std::string> text = FormatList(output, message, items, view);
  if (!text.ok()) return text.status();
  *output.out << *text << std::flush;
  return absl::OkStatus();
}

// A list of one, except that JSON and YAML show the message itself.
template <typename T>
absl::Status PrintOne(const Output& output, const T& message,
                      const View<T>& view) {
  return PrintList(output, message, std::vector<T>{message}, view);
}

}  // namespace qlora::client
