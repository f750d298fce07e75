// A map seen through changes that are not applied yet: what one transaction
// reads and writes. Not thread-safe.
#pragma once

#include <map>
#include <optional>
#include <utility>

namespace qlora::server {

template <typename K, typename V>
class Overlay {
 public:
  using Changes = std::map<K, std::optional<V>>;

  // base must outlive this.
  explicit Overlay(const std::map<K, V>& base) : base_(base) {}

  // Null if absent. Valid until the key is put or erased.
  const V* Find(const K& key) const {
    const auto change = changes_.find(key);
    if (change != changes_.end()) {
      return change->second ? &*change->second : nullptr;
    }
    const auto it = base_.find(key);
    return it == base_.end() ? nullptr : &it->second;
  }

  // Copies the value at the first call. Null if absent.
  V* Mutable(const K& key) {
    const V* value = Find(key);
    if (value == nullptr) return nullptr;
    const auto [it, inserted] = changes_.try_emplace(key);
    if (inserted) it->second = *value;
    return &*it->second;
  }

  V& Put(const K& key, V value) {
    auto& slot = changes_[key];
    slot = std::move(value);
    return *slot;
  }
  void Erase(const K& key) { changes_[key] = std::nullopt; }

  // f(key, value) in key order. f must not change the overlay.
  template <typename F>
  void ForEach(F f) const {
    auto change = changes_.begin();
    for (const auto& [key, value] : base_) {
      for (; change != changes_.end() && change->first < key; ++change) {
        if (change->second) f(change->first, *change->second);
      }
      if (change != changes_.end() && change->first == key) {
        if (change->second) f(key, *change->second);
        ++change;
      } else {
        f(key, value);
      }
    }
    for (; change != changes_.end(); ++change) {
      if (change->second) f(change->first, *change->second);
    }
  }

  const Changes& changes() const { return changes_; }

  // Moves the changes into the map that this was made of.
  void ApplyTo(std::map<K, V>& base) && {
    for (auto& [key, value] : changes_) {
      if (value) {
        base.insert_or_assign(key, std::move(*value));
      } else {
        base.erase(key);
      }
    }
  }

 private:
  const std::map<K, V>& base_;
  Changes changes_;
};

}  // namespace qlora::server
