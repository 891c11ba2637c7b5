package berth

import (
	"errors"
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	for _, s := range []string{"a", "0", "web-1", "my_net.v2", "A", strings.Repeat("x", 128)} {
		if err := ValidName("network", s); err != nil {
			t.Errorf("ValidName(%q): %v", s, err)
		}
	}
	for s, want := range map[string]string{
		"":                       `invalid network name "": a name has at least one letter or digit`,
		"-a":                     `invalid network name "-a": a name starts with a letter or digit`,
		"..":                     `invalid network name "..": a name starts with a letter or digit`,
		"a/b":                    `invalid network name "a/b": '/'; a name has only letters, digits, "_", "." and "-"`,
		"café":                   `invalid network name "café": 'é'; a name has only letters, digits, "_", "." and "-"`,
		"a\nb":                   `invalid network name "a\nb": '\n'; a name has only letters, digits, "_", "." and "-"`,
		"a\xffb":                 `invalid network name "a\xffb": '�'; a name has only letters, digits, "_", "." and "-"`,
		strings.Repeat("x", 300): `invalid network name "` + strings.Repeat("x", 40) + `"…: 300 bytes long; a name has at most 128`,
	} {
		err := ValidName("network", s)
		if !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("ValidName(%q)\n got %v\nwant %s", s, err, want)
		}
	}
}
