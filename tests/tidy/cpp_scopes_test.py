"""The scan of C++ scopes counts what a compiler would."""

import unittest

import cpp_scopes


def types(code):
    return [(t.namespace, t.name, t.line, t.members) for t in cpp_scopes.types(code)]


def members(body):
    found = types(f"class A {{\n{body}\n}};\n")
    return found[-1][3]


class CppScopesTest(unittest.TestCase):
    def test_data_is_told_from_functions(self):
        for body, count in [
            ("int a;", 1),
            ("int a, b = 2, c{3};", 3),
            ("private: const std::map<int, std::pair<a, b>> a_ ABSL_GUARDED_BY(mu_);", 1),
            ("std::function<void(int, absl::Status)> done = nullptr;", 1),
            ("double a = f(1, 2), b = std::max({1, 2});", 2),
            ("size_t a = size_t{1} << 20;", 1),
            ("absl::Status (*run)(const Flags&) = nullptr;", 1),
            ("uint8_t bytes[16] = {};", 1),
            ("alignas(64) std::atomic<uint64_t> a{0};", 1),
            ("mutable Mutex mu_ ABSL_ACQUIRED_AFTER(other_);", 1),
            ("int a : 3;", 1),
            ("static int a; static constexpr int b = 1; using C = int; friend class D; class E; enum class F { kA, kB };", 0),
            ("A(); ~A() = default; int F(int a = 1) const; virtual void G() = 0;", 0),
            ("A(int a) : a_(a), b_{a} { int c; } int a_; int b_;", 2),
            ("bool operator==(const A&) const = default; operator int() const;", 0),
            ("template <typename T> void F(T t) { int a; } int a;", 1),
            ("explicit A(int) {} const B& b() const { return b_; } B b_;", 1),
            ("auto F() -> int { return 1; } int a;", 1),
            ("struct B { int x; int y; } b; struct C { int z; }; int c;", 2),
        ]:
            with self.subTest(body=body):
                self.assertEqual(members(body), count)

    def test_types_are_named_with_what_is_around_them(self):
        code = ("#define A { {\\\n  {\nnamespace a::b {\nclass B;\nnamespace {\nstruct C final : public D, E {\n  int x;\n};\n}\n"
                "template <class T>\nclass F {\n  struct G { int y, z; };\n};\nvoid H() { struct I { int a; }; }\n}\nextern    {\n"
                "struct J {};\n}\n")
        self.assertEqual(types(code), [("a::b::?", "C", 6, 1), ("a::b", "F::G", 12, 2), ("a::b", "F", 11, 0), ("", "J", 17, 0)])

    def test_specialisations_and_returned_types_are_no_definitions(self):
        self.assertEqual(types("struct A f() { return {}; }\nconst struct A a = {1};\nstruct A b{1};\n"), [])


if __name__ == "__main__":
    unittest.main()
