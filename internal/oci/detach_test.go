package oci

import "testing"

func TestParseDetachKeys(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "\x10\x11"},
		{"ctrl-p,ctrl-q", "\x10\x11"},
		{"a", "a"},
		{"ctrl-a,Q,1", "\x01Q1"},
		{"ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", "\x00\x1b\x1c\x1d\x1e\x1f"},
		{"ctrl-", "refused"},
		{"ctrl-1", "refused"},
		{"ctrl-ab", "refused"},
		{"a,,b", "refused"},
		{"ab", "refused"},
		{"é", "refused"},
	} {
		got, err := ParseDetachKeys(tt.in)
		if err != nil {
			got = DetachKeys("refused")
		}
		if string(got) != tt.want {
			t.Errorf("%q: got %q (%v), want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestDetacher(t *testing.T) {
	for _, tt := range []struct {
		keys     string
		in       []string
		want     string
		detached bool
	}{
		{"pq", []string{"abc"}, "abc", false},
		{"pq", []string{"pq"}, "", true},
		{"pq", []string{"ap", "qb"}, "a", true},
		{"pq", []string{"ppq"}, "p", true},
		{"pq", []string{"pa", "p"}, "pa", false},
		{"aab", []string{"aaab"}, "a", true},
		{"abab", []string{"abaabab"}, "aba", true},
		{"", []string{"pq"}, "pq", false},
	} {
		d := detacher{keys: DetachKeys(tt.keys)}
		var got string
		var detached bool
		for _, in := range tt.in {
			var out []byte
			out, detached = d.pass([]byte(in))
			got += string(out)
		}
		if got != tt.want || detached != tt.detached {
			t.Errorf("%q in %q: got %q %v, want %q %v", tt.keys, tt.in, got, detached, tt.want, tt.detached)
		}
	}
}
