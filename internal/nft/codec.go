package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"berth/internal/plan"
)

// A part is one part of a key or value: how it is written and how many bytes
// it takes in the kernel, where every part is padded to a multiple of four.
type part struct {
	size  int
	write func(b []byte, s string) error
	read  func(b []byte) string
}

// A shape is how the elements of a set are written.
type shape struct {
	key, value []part
	interval   bool // a single interval: the key is a prefix
	prefixed   bool // the first part of a concatenated key is a prefix
}

var shapes = map[string]shape{
	"bridges": {key: []part{ifname}}, "closed": {key: []part{ifname}}, "deaf": {key: []part{ifname}}, "open": {key: []part{ifname}},
	"refused_from": {key: []part{ifname}}, "refused_to": {key: []part{ifname}},
	"within":  {key: []part{ifname, ifname}},
	"uplinks": {key: []part{nfproto, ifname}},
	"masq4":   {key: []part{addr4}, interval: true}, "masq6": {key: []part{addr6}, interval: true},
	"shield4": {key: []part{addr4}, interval: true}, "shield6": {key: []part{addr6}, interval: true},
	"hairpin4": {key: []part{addr4, ifname}, prefixed: true}, "hairpin6": {key: []part{addr6, ifname}, prefixed: true},
	"publish4":     {key: []part{addr4, proto, port}, value: []part{addr4, port}},
	"publish6":     {key: []part{addr6, proto, port}, value: []part{addr6, port}},
	"publish_any4": {key: []part{proto, port}, value: []part{addr4, port}},
	"publish_any6": {key: []part{proto, port}, value: []part{addr6, port}},
}

var (
	ifname = part{16, func(b []byte, s string) error {
		if s == "" || len(s) > 15 {
			return fmt.Errorf("%q is no link's name", s)
		}
		copy(b, s)
		return nil
	}, func(b []byte) string { return strings.TrimRight(string(b), "\x00") }}

	addr4 = part{4, writeAddr, readAddr}
	addr6 = part{16, writeAddr, readAddr}

	port = part{2, func(b []byte, s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		binary.BigEndian.PutUint16(b, uint16(n))
		return err
	}, func(b []byte) string { return strconv.Itoa(int(binary.BigEndian.Uint16(b))) }}

	proto = named(map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP})

	nfproto = named(map[string]byte{"ipv4": unix.NFPROTO_IPV4, "ipv6": unix.NFPROTO_IPV6})
)

func writeAddr(b []byte, s string) error {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return err
	}
	if a.BitLen() != len(b)*8 {
		return fmt.Errorf("%s is of the other family", s)
	}
	if a.Is4() {
		a4 := a.As4()
		copy(b, a4[:])
		return nil
	}
	a16 := a.As16()
	copy(b, a16[:])
	return nil
}

func readAddr(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

// named is a one-byte part that is written by name; a number without one is
// somebody else's.
func named(names map[string]byte) part {
	return part{1, func(b []byte, s string) error {
		if n, ok := names[s]; ok {
			b[0] = n
			return nil
		}
		n, err := strconv.ParseUint(s, 10, 8)
		b[0] = byte(n)
		return err
	}, func(b []byte) string {
		for name, n := range names {
			if n == b[0] {
				return name
			}
		}
		return strconv.Itoa(int(b[0]))
	}}
}

func padded(n int) int { return (n + 3) &^ 3 }

func encode(parts []part, text string) ([]byte, error) {
	size := 0
	for _, p := range parts {
		size += padded(p.size)
	}
	out := make([]byte, size)
	rest, more := text, true
	for at, i := 0, 0; i < len(parts) && more; i++ {
		var word string
		word, rest, more = strings.Cut(rest, " . ")
		if more != (i < len(parts)-1) {
			return nil, fmt.Errorf("%q has not %d parts", text, len(parts))
		}
		p := parts[i]
		if err := p.write(out[at:at+p.size], word); err != nil {
			return nil, err
		}
		at += padded(p.size)
	}
	return out, nil
}

func decode(parts []part, b []byte) (string, error) {
	words := make([]string, len(parts))
	for i, p := range parts {
		if len(b) < p.size {
			return "", fmt.Errorf("% x is too short", b)
		}
		words[i] = p.read(b[:p.size])
		b = b[min(len(b), padded(p.size)):]
	}
	return strings.Join(words, " . "), nil
}

// longestComment bounds a comment with room to spare: the kernel takes 255
// bytes with their frame, and perMessage counts on it.
const longestComment = 200

// elements appends what the kernel keeps for one element: for an interval two,
// its start and its end, which is the first address behind it.
func elements(out []nftables.SetElement, e plan.Element) ([]nftables.SetElement, error) {
	s, ok := shapes[e.Set]
	if !ok {
		return nil, fmt.Errorf("no set %s", e.Set)
	}
	if len(e.Comment) > longestComment {
		return nil, fmt.Errorf("element %s { %s }: a comment of %d bytes is too long", e.Set, e.Key, len(e.Comment))
	}
	if s.interval {
		return intervalElements(out, s, e)
	}
	el := nftables.SetElement{Comment: e.Comment}
	var err error
	if s.prefixed {
		el.Key, el.KeyEnd, err = encodePrefixed(s.key, e.Key)
	} else {
		el.Key, err = encode(s.key, e.Key)
	}
	if err == nil && s.value != nil {
		el.Val, err = encode(s.value, e.Value)
	}
	if err != nil {
		return nil, fmt.Errorf("element %s { %s }: %w", e.Set, e.Key, err)
	}
	return append(out, el), nil
}

func intervalElements(out []nftables.SetElement, s shape, e plan.Element) ([]nftables.SetElement, error) {
	from, to, err := span(e.Key)
	if err != nil {
		return nil, fmt.Errorf("element %s { %s }: %w", e.Set, e.Key, err)
	}
	if len(from.AsSlice()) != s.key[0].size {
		return nil, fmt.Errorf("element %s { %s }: of the other family", e.Set, e.Key)
	}
	out = append(out, nftables.SetElement{Key: from.AsSlice(), Comment: e.Comment})
	// What reaches to the last address there is has no end, as nft writes it.
	if end := to.Next(); end.IsValid() {
		out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return out, nil
}

// span is the first and the last address of a prefix, or of a range "a-b",
// which only somebody else can have put.
func span(s string) (from, to netip.Addr, err error) {
	if a, b, ok := strings.Cut(s, "-"); ok {
		if from, err = netip.ParseAddr(a); err == nil {
			to, err = netip.ParseAddr(b)
		}
		return from, to, err
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return from, to, err
	}
	return p.Masked().Addr(), last(p), nil
}

func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// asSpan writes two addresses as the prefix they bound, or as a range.
func asSpan(from, to netip.Addr) string {
	for bits := range from.BitLen() + 1 {
		p := netip.PrefixFrom(from, bits)
		if p.Masked().Addr() == from && last(p) == to {
			return p.String()
		}
	}
	return from.String() + "-" + to.String()
}

func encodePrefixed(parts []part, text string) (key, end []byte, err error) {
	prefix, rest, _ := strings.Cut(text, " . ")
	from, to, err := span(prefix)
	if err != nil {
		return nil, nil, err
	}
	if key, err = encode(parts, from.String()+" . "+rest); err != nil {
		return nil, nil, err
	}
	end, err = encode(parts, to.String()+" . "+rest)
	return key, end, err
}

// readAll turns the kernel's elements of one set into ours.
func (s shape) readAll(set string, all []nftables.SetElement, put func(plan.ElemKey, nftables.SetElement, plan.Elem)) error {
	if s.interval {
		return s.readIntervals(set, all, put)
	}
	for _, el := range all {
		if len(el.Key) == 0 { // the library cannot delete what matches everything
			return fmt.Errorf("somebody else's element: run nft delete element inet berth %s '{ * }'", set)
		}
		text, err := decode(s.key, el.Key)
		if err == nil && s.prefixed {
			text, err = s.prefixOf(el)
		}
		if err != nil {
			return err
		}
		e := plan.Elem{Comment: el.Comment}
		if s.value != nil {
			if e.Value, err = decode(s.value, el.Val); err != nil {
				return err
			}
		}
		put(plan.ElemKey{Set: set, Key: text}, el, e)
	}
	return nil
}

func (s shape) prefixOf(el nftables.SetElement) (string, error) {
	size := s.key[0].size
	from, _ := netip.AddrFromSlice(el.Key[:size])
	to := from // somebody else's: a single address has no end
	if len(el.KeyEnd) >= size {
		to, _ = netip.AddrFromSlice(el.KeyEnd[:size])
	}
	rest, err := decode(s.key[1:], el.Key[padded(size):])
	return asSpan(from, to) + " . " + rest, err
}

// readIntervals pairs starts with ends, whatever order the kernel lists them
// in. An interval without an end reaches to the last address.
func (s shape) readIntervals(set string, all []nftables.SetElement, put func(plan.ElemKey, nftables.SetElement, plan.Elem)) error {
	sorted := append([]nftables.SetElement{}, all...)
	byAddress(sorted)
	for i, el := range sorted {
		if el.IntervalEnd {
			continue
		}
		from, ok := netip.AddrFromSlice(el.Key)
		if !ok {
			return fmt.Errorf("% x is no address: if it is an element *, run nft delete element inet berth %s '{ * }'", el.Key, set)
		}
		to := last(netip.PrefixFrom(from, 0))
		if i+1 < len(sorted) {
			next, _ := netip.AddrFromSlice(sorted[i+1].Key)
			to = next.Prev()
		}
		put(plan.ElemKey{Set: set, Key: asSpan(from, to)}, el, plan.Elem{Comment: el.Comment})
	}
	return nil
}
