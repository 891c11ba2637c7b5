package berth

import (
	"errors"
	"testing"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]uint64{
		"10mbit": 10e6, "10Mbit": 10e6, "2.5gbit": 2.5e9, "64kbit": 64e3, "1500": 1500, "8bit": 8, "0": 0,
	} {
		if got, err := ParseRate(in); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "mbit", "10mbps", "10mb", "-1mbit", "1e3mbit", "nan", "infbit", "0x1kbit", "99999999999gbit", "10 mbit", "1_0kbit", "10kibit"} {
		if got, err := ParseRate(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseRate(%q) = %d, %v, want an error", in, got, err)
		}
	}
}

func TestParseBurst(t *testing.T) {
	for in, want := range map[string]uint64{"256kb": 256 << 13, "1mb": 8 << 20, "256kbit": 256e3, "1500": 12000, "1500b": 12000} {
		if got, err := ParseBurst(in); err != nil || got != want {
			t.Errorf("ParseBurst(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	if _, err := ParseBurst("many"); !errors.Is(err, ErrInvalid) {
		t.Errorf("many: %v", err)
	}
}

func TestFormatRate(t *testing.T) {
	for bits, want := range map[uint64]string{10e6: "10mbit", 2.5e9: "2500mbit", 1500: "1500bit", 3e9: "3gbit", 0: "0bit"} {
		got := FormatRate(bits)
		if back, err := ParseRate(got); got != want || err != nil || back != bits {
			t.Errorf("FormatRate(%d) = %s (%d, %v), want %s", bits, got, back, err, want)
		}
	}
}

func TestRateChange(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	was := Rates{In: Rate{10e6, 8000}, Out: Rate{5e6, 0}}
	for _, tt := range []struct {
		name string
		c    RateChange
		want Rates
		err  error
	}{
		{"nothing", RateChange{}, was, nil},
		{"one", RateChange{In: n(20e6)}, Rates{Rate{20e6, 8000}, Rate{5e6, 0}}, nil},
		{"gone", RateChange{In: n(0)}, Rates{Out: Rate{5e6, 0}}, nil},
		{"burst", RateChange{Burst: n(16000)}, Rates{Rate{10e6, 16000}, Rate{5e6, 16000}}, nil},
		{"burst of none", RateChange{In: n(0), Out: n(0), Burst: n(16000)}, Rates{}, ErrInvalid},
		{"too low", RateChange{Out: n(8)}, Rates{Rate{10e6, 8000}, Rate{8, 0}}, ErrInvalid},
	} {
		if got, err := tt.c.Of(was); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: %+v, %v, want %+v, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

func TestFormatBurst(t *testing.T) {
	for bits, want := range map[uint64]string{256 << 13: "256kb", 8 << 20: "1mb", 12000: "1500b", 1001: "1001bit", 0: "0bit"} {
		got := FormatBurst(bits)
		if back, err := ParseBurst(got); got != want || err != nil || back != bits {
			t.Errorf("FormatBurst(%d) = %s (%d, %v), want %s", bits, got, back, err, want)
		}
	}
}
