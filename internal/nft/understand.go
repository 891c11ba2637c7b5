package nft

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"berth/internal/foreign"
)

// A reader reads one foreign rule: an expression loads something into a
// register, the next compares it. What is not about links, addresses,
// protocols, conntrack states or verdicts becomes a foreign.Unknown.
type reader struct {
	family   nftables.TableFamily
	elements func(set string) ([]setElement, bool)
	link     func(index uint32) (string, bool)

	loaded map[uint32]load // by register
	ipv6   bool            // of an inet table: the rule asked for IPv6
	out    foreign.Rule
	more   []foreign.Rule // one for each element of a verdict map
}

// A field is what a register holds.
type field int

const (
	other field = iota
	inName
	outName
	inIndex
	outIndex
	ctState
	ctStatus
	source
	destination
	protocol
	ipVersion
	etherType
)

type load struct {
	field field
	mask  []byte // nil: the whole of it
	size  uint32 // bytes of an address that were loaded
	ipv6  bool
}

// rules reads a rule; a verdict map makes several of one.
func (u *reader) rules(exprs []any) []foreign.Rule {
	u.loaded = map[uint32]load{}
	u.ipv6 = u.family == nftables.TableFamilyIPv6
	for _, e := range exprs {
		u.read(e)
	}
	if u.more != nil {
		return u.more
	}
	return []foreign.Rule{u.out}
}

func (u *reader) match(m foreign.Match) { u.out.Matches = append(u.out.Matches, m) }

// register is the number of a register by its place: 1 and 8 are one.
func register(n uint32) uint32 {
	if n >= 1 && n <= 4 {
		return 4 + 4*n
	}
	return n
}

func (u *reader) read(e any) {
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			u.load(e.Register, load{field: metaFields[e.Key]})
		}
	case *expr.Ct:
		if e.Register != 0 { // else it sets something
			u.load(e.Register, load{field: ctFields[e.Key]})
		}
	case *expr.Payload:
		if e.DestRegister != 0 {
			u.load(e.DestRegister, u.payload(e))
		}
	case *expr.Bitwise:
		l := u.loaded[register(e.SourceRegister)]
		if l.mask != nil || len(bytes.Trim(e.Xor, "\x00")) > 0 {
			l.field = other
		}
		l.mask = e.Mask
		u.load(e.DestRegister, l)
	case *expr.Cmp:
		u.compare(u.loaded[register(e.Register)], e.Op, e.Data)
	case *expr.Lookup:
		u.lookup(e)
	case *expr.Match:
		for _, m := range matchesOf(e.Info) {
			u.match(m)
		}
	case *expr.Verdict:
		u.out.Verdict, u.out.To = verdictOf(int32(e.Kind)), e.Chain
	case *expr.Reject:
		u.out.Verdict = foreign.Drop
	case *expr.Target:
		u.target(e.Name)
	case *expr.Immediate:
		u.load(e.Register, load{})
	case unknownExpr:
		u.unknown(e.name)
	case *expr.Counter, *expr.Log:
	default:
		u.match(foreign.Unknown{})
	}
}

func (u *reader) load(reg uint32, l load) { u.loaded[register(reg)] = l }

// harmless expressions neither match nor decide; takers take the packet away,
// so it is perhaps not dropped.
var (
	harmless = map[string]bool{"notrack": true, "last": true, "flow_offload": true}
	takers   = map[string]bool{"queue": true, "synproxy": true, "fwd": true, "tproxy": true}
)

func (u *reader) unknown(name string) {
	switch {
	case harmless[name]:
	case takers[name]:
		u.match(foreign.Unknown{})
		u.out.Verdict = foreign.Accept
	default:
		u.match(foreign.Unknown{})
	}
}

var metaFields = map[expr.MetaKey]field{
	expr.MetaKeyIIFNAME: inName, expr.MetaKeyOIFNAME: outName, expr.MetaKeyIIF: inIndex, expr.MetaKeyOIF: outIndex,
	expr.MetaKeyL4PROTO: protocol, expr.MetaKeyNFPROTO: ipVersion, expr.MetaKeyPROTOCOL: etherType,
}

var ctFields = map[expr.CtKey]field{expr.CtKeySTATE: ctState, expr.CtKeySTATUS: ctStatus}

// payload knows the addresses and the protocol in the headers of RFC 791 and
// RFC 8200.
func (u *reader) payload(e *expr.Payload) load {
	if e.Base != expr.PayloadBaseNetworkHeader {
		return load{}
	}
	type place struct {
		ipv6   bool
		offset uint32
	}
	addresses := map[place]field{{false, 12}: source, {false, 16}: destination, {true, 8}: source, {true, 24}: destination}
	protocols := map[place]bool{{false, 9}: true, {true, 6}: true}
	at, longest := place{u.ipv6, e.Offset}, uint32(4)
	if u.ipv6 {
		longest = 16
	}
	if f, ok := addresses[at]; ok && e.Len <= longest {
		return load{field: f, size: e.Len, ipv6: u.ipv6}
	}
	if protocols[at] && e.Len == 1 {
		return load{field: protocol}
	}
	return load{}
}

func (u *reader) compare(l load, op expr.CmpOp, data []byte) {
	if op != expr.CmpOpEq && op != expr.CmpOpNeq {
		u.match(foreign.Unknown{})
		return
	}
	if l.field == ctState || l.field == ctStatus {
		u.match(bitsOf(l, op, data))
		return
	}
	u.match(u.value(l, [][]byte{data}, op == expr.CmpOpNeq))
}

// bitsOf is "any of these bits is set", which is written as a mask that leaves
// something, or as one state that is compared whole.
func bitsOf(l load, op expr.CmpOp, data []byte) foreign.Match {
	if l.field == ctState && l.mask == nil && len(data) == 4 {
		return foreign.State{Bits: binary.NativeEndian.Uint32(data), Not: op == expr.CmpOpNeq}
	}
	if len(l.mask) != 4 || len(bytes.Trim(data, "\x00")) > 0 {
		return foreign.Unknown{}
	}
	mask := binary.NativeEndian.Uint32(l.mask)
	if l.field == ctStatus {
		if mask != statusDNAT {
			return foreign.Unknown{}
		}
		mask = foreign.DNAT
	}
	return foreign.State{Bits: mask, Not: op == expr.CmpOpEq}
}

// value is the match of a loaded field against one of several values.
func (u *reader) value(l load, values [][]byte, not bool) foreign.Match {
	switch l.field {
	case inName, outName, inIndex, outIndex:
		names, ok := u.names(l, values)
		switch {
		case !ok || l.mask != nil:
		case l.field == inName || l.field == inIndex:
			return foreign.In{Names: names, Not: not}
		default:
			return foreign.Out{Names: names, Not: not}
		}
	case source, destination:
		prefixes, ok := prefixesOf(l, values)
		switch {
		case !ok:
		case l.field == source:
			return foreign.Source{Prefixes: prefixes, Not: not}
		default:
			return foreign.Destination{Prefixes: prefixes, Not: not}
		}
	case protocol:
		var numbers []uint8
		for _, v := range values {
			if len(v) == 1 {
				numbers = append(numbers, v[0])
			}
		}
		if len(numbers) == len(values) && l.mask == nil {
			return foreign.Protocol{Numbers: numbers, Not: not}
		}
	case ipVersion, etherType:
		if len(values) == 1 && l.mask == nil {
			return u.version(values[0], not)
		}
	}
	return foreign.Unknown{}
}

// version remembers what the headers that follow look like.
func (u *reader) version(v []byte, not bool) foreign.Match {
	switch {
	case bytes.Equal(v, []byte{unix.NFPROTO_IPV4}), bytes.Equal(v, []byte{0x08, 0x00}):
		u.ipv6 = not
		return foreign.Version{Not: not}
	case bytes.Equal(v, []byte{unix.NFPROTO_IPV6}), bytes.Equal(v, []byte{0x86, 0xdd}):
		u.ipv6 = !not
		return foreign.Version{IPv6: true, Not: not}
	}
	return foreign.Unknown{}
}

func (u *reader) names(l load, values [][]byte) (out []foreign.Name, ok bool) {
	for _, v := range values {
		if l.field == inIndex || l.field == outIndex {
			if len(v) != 4 {
				return nil, false
			}
			name, ok := u.link(binary.NativeEndian.Uint32(v))
			if !ok {
				return nil, false
			}
			out = append(out, foreign.Name{Text: name})
			continue
		}
		// A name that is compared without its zero is a prefix.
		text, _, ended := bytes.Cut(v, []byte{0})
		out = append(out, foreign.Name{Text: string(text), Prefix: !ended && len(v) < 16})
	}
	return out, true
}

// prefixesOf reads addresses: a prefix is compared by its mask or, where it
// ends with a byte, by its first bytes.
func prefixesOf(l load, values [][]byte) (out []netip.Prefix, ok bool) {
	length := 4
	if l.ipv6 {
		length = 16
	}
	ones := int(l.size) * 8
	if l.mask != nil {
		if ones, ok = onesOf(l.mask); !ok || len(l.mask) != int(l.size) {
			return nil, false
		}
	}
	for _, v := range values {
		if len(v) != int(l.size) {
			return nil, false
		}
		a, _ := netip.AddrFromSlice(append(bytes.Clone(v), make([]byte, length-len(v))...))
		out = append(out, netip.PrefixFrom(a, ones).Masked())
	}
	return out, true
}

// onesOf counts the leading ones of a mask that has none behind.
func onesOf(mask []byte) (n int, ok bool) {
	for i, b := range mask {
		ones := bits.LeadingZeros8(^b)
		n += ones
		if ones < 8 {
			return n, b<<ones == 0 && len(bytes.Trim(mask[i+1:], "\x00")) == 0
		}
	}
	return n, true
}

func (u *reader) lookup(e *expr.Lookup) {
	l := u.loaded[register(e.SourceRegister)]
	els, ok := u.elements(e.SetName)
	if e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT {
		u.verdictMap(l, els, ok)
		return
	}
	var values [][]byte
	for _, el := range els {
		values = append(values, el.key)
	}
	switch {
	case e.IsDestRegSet:
		u.load(e.DestRegister, load{})
		u.match(foreign.Unknown{})
	case !ok:
		u.match(foreign.Unknown{})
	default:
		u.match(u.oneOf(l, values, e.Invert))
	}
}

// oneOf is value, and for conntrack states their bits together.
func (u *reader) oneOf(l load, values [][]byte, not bool) foreign.Match {
	if l.field != ctState || l.mask != nil {
		return u.value(l, values, not)
	}
	var mask uint32
	for _, v := range values {
		if len(v) != 4 {
			return foreign.Unknown{}
		}
		mask |= binary.NativeEndian.Uint32(v)
	}
	return foreign.State{Bits: mask, Not: not}
}

// verdictMap makes one rule for each element. If they are not known, the
// packet is perhaps accepted.
func (u *reader) verdictMap(l load, els []setElement, known bool) {
	if !known {
		u.match(foreign.Unknown{})
		u.out.Verdict = foreign.Accept
		return
	}
	u.more = []foreign.Rule{}
	for _, el := range els {
		r := foreign.Rule{Matches: append([]foreign.Match{u.oneOf(l, [][]byte{el.key}, false)}, u.out.Matches...)}
		code, chain := verdictOfElement(el.verdict)
		r.Verdict, r.To = verdictOf(code), chain
		u.more = append(u.more, r)
	}
}

// verdictOf reads the codes of nf_tables.h.
func verdictOf(code int32) foreign.Verdict {
	switch expr.VerdictKind(code) {
	case expr.VerdictAccept:
		return foreign.Accept
	case expr.VerdictDrop:
		return foreign.Drop
	case expr.VerdictReturn:
		return foreign.Return
	case expr.VerdictJump:
		return foreign.Jump
	case expr.VerdictGoto:
		return foreign.Goto
	}
	return foreign.Next
}
