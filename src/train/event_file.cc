#include "train/event_file.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>

#include "megafold/core/error.h"

namespace megafold::train {
namespace {

constexpr std::array<std::uint32_t, 256> MakeCrcTable() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) ? 0x82F63B78U : 0U);
    table[i] = crc;
  }
  return table;
}

// TFRecord stores the CRC rotated and shifted by a constant, so that a CRC of data that holds CRCs
// stays useful.
std::uint32_t MaskedCrc(std::string_view bytes) {
  const std::uint32_t crc = Crc32c(bytes);
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

template <typename T>
std::string LittleEndian(T value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    bytes.push_back(static_cast<char>((value >> (8 * i)) & 0xFF));
  }
  return bytes;
}

// The four shapes of protobuf fields that Event needs.
std::string Varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>((value & 0x7F) | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
std::string Tag(int field, int wire_type) {
  return Varint(static_cast<std::uint64_t>(field) << 3 | static_cast<std::uint64_t>(wire_type));
}
std::string IntField(int field, std::int64_t value) {
  return Tag(field, 0) + Varint(static_cast<std::uint64_t>(value));
}
std::string DoubleField(int field, double value) {
  return Tag(field, 1) + LittleEndian(std::bit_cast<std::uint64_t>(value));
}
std::string BytesField(int field, std::string_view bytes) {
  return Tag(field, 2) + Varint(bytes.size()) + std::string(bytes);
}
std::string FloatField(int field, float value) {
  return Tag(field, 5) + LittleEndian(std::bit_cast<std::uint32_t>(value));
}

// message Event: 1 wall_time, 2 step, 3 file_version, 5 summary, 7 session_log.
std::string Event(std::int64_t step, const std::string& content) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  return DoubleField(1, now.count()) + IntField(2, step) + content;
}

std::string HostName() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

std::filesystem::path FreshPath(const std::filesystem::path& folder) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  return folder / StrCat("events.out.tfevents.", seconds, ".", HostName(), ".", getpid());
}

}  // namespace

std::uint32_t Crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> kTable = MakeCrcTable();
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFFU];
  }
  return ~crc;
}

EventFile::EventFile(const std::filesystem::path& folder, std::int64_t first_step)
    : path_(FreshPath(folder)), stream_(path_, std::ios::binary | std::ios::trunc) {
  Record(Event(0, BytesField(3, "brain.Event:2")));
  constexpr int kSessionStart = 1;
  Record(Event(first_step, BytesField(7, IntField(1, kSessionStart))));
}

void EventFile::Scalars(std::int64_t step, std::span<const std::pair<std::string, float>> values) {
  std::string summary;
  for (const auto& [tag, value] : values) {
    summary += BytesField(1, BytesField(1, tag) + FloatField(2, value));
  }
  Record(Event(step, BytesField(5, summary)));
}

void EventFile::Record(std::string_view event) {
  const std::string length = LittleEndian(static_cast<std::uint64_t>(event.size()));
  stream_ << length << LittleEndian(MaskedCrc(length)) << event << LittleEndian(MaskedCrc(event));
  stream_.flush();
  if (!stream_) Fail(ErrorCode::kInternal, path_.string(), ": cannot write");
}

}  // namespace megafold::train
