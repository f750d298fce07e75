#include "client/records.h"

#include <algorithm>
#include <memory>
#include <sstream>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/formats/records.h"
#include "common/spec/record_shape.h"

namespace qlora::client {
namespace {

class BadRecords {
 public:
  // The record at this place; good if `why` is empty.
  void Add(std::string_view place, std::string_view why) {
    if (why.empty()) {
      any_good_ = true;
      return;
    }
    const auto same = std::ranges::find(reasons_, why, &Reason::why);
    if (same == reasons_.end() && reasons_.size() == kReasons) {
      ++others_;
      return;
    }
    Reason& reason = same == reasons_.end()
                         ? reasons_.emplace_back(Reason{std::string(why)})
                         : *same;
    if (reason.count++ < kPlaces) {
      reason.places.append(reason.count > 1 ? ", " : "").append(place);
    }
  }

  bool any_good() const { return any_good_; }

  std::string List(const std::string& name) const {
    std::string list;
    for (const Reason& reason : reasons_) {
      absl::StrAppend(&list, name, ":", reason.places);
      if (reason.count > kPlaces) {
        absl::StrAppend(&list, " and ", reason.count - kPlaces, " more");
      }
      absl::StrAppend(&list, ": ", reason.why, "\n");
    }
    if (others_ > 0) absl::StrAppend(&list, "and ", others_, " more\n");
    return list;
  }

 private:
  static constexpr size_t kReasons = 10;
  static constexpr int64_t kPlaces = 3;
  struct Reason {
    std::string why;
    std::string places = {};
    int64_t count = 0;
  };
  bool any_good_ = false;
  // In the order in which they came.
  std::vector<Reason> reasons_;
  // Records that are bad for yet other reasons.
  int64_t others_ = 0;
};

std::string WhyBad(const std::string& json) {
  const absl::StatusOr<RecordJson> value = ParseRecord(json);
  const absl::Status status =
      value.ok() ? CheckRecordOfAnyFormat(*value) : value.status();
  return std::string(status.message());
}

void CheckPlain(const Record& piece, BadRecords& bad) {
  std::istringstream lines(piece.text);
  std::string line;
  for (int64_t number = piece.line; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    bad.Add(absl::StrCat(number),
            ToValidUtf8(line) == line ? "" : "is not UTF-8");
  }
}

}  // namespace

absl::Status CheckRecords(const std::string& path, const std::string& name,
                          bool* any_good) {
  *any_good = false;
  ASSIGN_OR_RETURN(const std::unique_ptr<RecordReader> reader,
                   RecordReader::Open(path, name, /*may_be_plain=*/true));
  BadRecords bad;
  for (;;) {
    const absl::StatusOr<std::vector<Record>> records = reader->Next(1);
    if (!records.ok()) {
      // A job cannot read on either, whatever it skips.
      return absl::Status(
          records.status().code(),
          absl::StrCat(bad.List(name), records.status().message(), "\n"));
    }
    if (records->empty()) break;
    const Record& record = records->front();
    if (record.plain) {
      CheckPlain(record, bad);
    } else {
      bad.Add(std::string_view(record.where).substr(name.size() + 1),
              WhyBad(record.text));
    }
  }
  *any_good = bad.any_good();
  const std::string list = bad.List(name);
  return list.empty() ? absl::OkStatus() : absl::InvalidArgumentError(list);
}

}  // namespace qlora::client
