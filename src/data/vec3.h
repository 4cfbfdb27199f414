// Points and rotations in Angstrom, no more than the pipeline needs.
#pragma once

#include <array>
#include <cmath>

namespace megafold::data {

using Vec3 = std::array<float, 3>;

inline Vec3 operator-(const Vec3& a, const Vec3& b) {
  return {a[0] - b[0], a[1] - b[1], a[2] - b[2]};
}
inline float Dot(const Vec3& a, const Vec3& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
inline float SquaredDistance(const Vec3& a, const Vec3& b) { return Dot(a - b, a - b); }
inline float Distance(const Vec3& a, const Vec3& b) { return std::sqrt(SquaredDistance(a, b)); }

}  // namespace megafold::data
