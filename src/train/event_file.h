// A TensorBoard event file of scalars: TFRecord framing around hand-encoded Event messages.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace megafold::train {

// CRC-32C (Castagnoli polynomial 0x1EDC6F41, reflected), as TFRecord uses it.
std::uint32_t Crc32c(std::string_view bytes);

class EventFile {
 public:
  // Begins a new file "events.out.tfevents.<seconds>.<host>.<pid>" in `folder`. Steps above
  // `first_step` - 1 that an earlier file of the folder shows are dropped by TensorBoard: they were
  // lost when the run was resumed.
  EventFile(const std::filesystem::path& folder, std::int64_t first_step);

  // One event with all values of a step; on the disk's way when it returns.
  void Scalars(std::int64_t step, std::span<const std::pair<std::string, float>> values);

  const std::filesystem::path& path() const { return path_; }

 private:
  void Record(std::string_view event);

  std::filesystem::path path_;
  std::ofstream stream_;
};

}  // namespace megafold::train
