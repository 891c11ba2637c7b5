package nft

import (
	_ "embed"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

//go:embed ruleset.nft
var ruleset string

// Ruleset is the text of table inet berth, as nft(8) reads it. It is what the
// table is described by; a test holds that what Apply makes is the same.
func Ruleset() string { return ruleset }

// storeComment opens the comment of the rule that carries the store's id.
const storeComment = "store "

var table = &nftables.Table{Name: "berth", Family: nftables.TableFamilyINet}

func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// sets are the named sets and maps in the order of ruleset.nft. A set that is
// added needs an id of its own: AddSet draws from a global without a lock.
var sets = func() []*nftables.Set {
	name, ip4, ip6 := nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIP6Addr
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	all := []*nftables.Set{
		{Name: "bridges", KeyType: name, KeyByteOrder: binaryutil.NativeEndian},
		{Name: "within", KeyType: concat(name, name)},
		{Name: "closed", KeyType: name, KeyByteOrder: binaryutil.NativeEndian},
		{Name: "deaf", KeyType: name, KeyByteOrder: binaryutil.NativeEndian},
		{Name: "open", KeyType: name, KeyByteOrder: binaryutil.NativeEndian},
		{Name: "uplinks", KeyType: concat(nftables.TypeNFProto, name)},
		{Name: "masq4", KeyType: ip4, Interval: true},
		{Name: "masq6", KeyType: ip6, Interval: true},
		{Name: "shield4", KeyType: ip4, Interval: true, Counter: true},
		{Name: "shield6", KeyType: ip6, Interval: true, Counter: true},
		{Name: "hairpin4", KeyType: concat(ip4, name), Interval: true, Concatenation: true},
		{Name: "hairpin6", KeyType: concat(ip6, name), Interval: true, Concatenation: true},
		{Name: "refused_from", KeyType: name, KeyByteOrder: binaryutil.NativeEndian, Counter: true},
		{Name: "refused_to", KeyType: name, KeyByteOrder: binaryutil.NativeEndian, Counter: true},
		{Name: "publish4", IsMap: true, KeyType: concat(ip4, proto, port), DataType: concat(ip4, port)},
		{Name: "publish6", IsMap: true, KeyType: concat(ip6, proto, port), DataType: concat(ip6, port)},
		{Name: "publish_any4", IsMap: true, KeyType: concat(proto, port), DataType: concat(ip4, port)},
		{Name: "publish_any6", IsMap: true, KeyType: concat(proto, port), DataType: concat(ip6, port)},
	}
	for i, s := range all {
		s.Table, s.ID = table, uint32(i+1)
	}
	return all
}()

func setNamed(name string) *nftables.Set {
	for _, s := range sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// A chain is one of the table's with its rules.
type chain struct {
	nftables.Chain
	rules [][]expr.Any
}

// The registers: 1 to 4 are 16 bytes each, 8 to 23 are 4 bytes each and lie in
// the same place (nf_tables.h), so 1 is 8 to 11 and 2 is 12 to 15.
const (
	reg1   = 1
	after4 = 9  // behind 4 bytes in reg1
	after8 = 10 // behind 8
	reg2   = 2  // behind 16
	reg12  = 12 // the same, as 4 bytes
	reg13  = 13 // behind 20
)

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func meta(key expr.MetaKey, reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}}
}

func compare(op expr.CmpOp, data ...byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: op, Register: reg1, Data: data}}
}

func is(data ...byte) []expr.Any { return compare(expr.CmpOpEq, data...) }

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// v4 and v6 are the family matches that an inet table needs before it looks
// into a packet.
func v4() []expr.Any { return join(meta(expr.MetaKeyNFPROTO, reg1), is(unix.NFPROTO_IPV4)) }
func v6() []expr.Any { return join(meta(expr.MetaKeyNFPROTO, reg1), is(unix.NFPROTO_IPV6)) }

func network(offset, length, reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

// Offsets of the addresses in the headers of IPv4 (RFC 791) and IPv6 (RFC
// 8200).
func saddr4() []expr.Any { return join(v4(), network(12, 4, reg1)) }
func daddr4() []expr.Any { return join(v4(), network(16, 4, reg1)) }
func saddr6() []expr.Any { return join(v6(), network(8, 16, reg1)) }
func daddr6() []expr.Any { return join(v6(), network(24, 16, reg1)) }

func dport(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

func lookup(set string, invert bool) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: set, Invert: invert}}
}

func in(set string) []expr.Any    { return lookup(set, false) }
func notIn(set string) []expr.Any { return lookup(set, true) }

func iif() []expr.Any { return meta(expr.MetaKeyIIFNAME, reg1) }
func oif() []expr.Any { return meta(expr.MetaKeyOIFNAME, reg1) }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// goTo is jump without a way back: at its end the base chain's policy decides.
func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func counted() []expr.Any { return []expr.Any{&expr.Counter{}} }

// ctBits matches if any of the bits of a conntrack key is set.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native32(bits), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: native32(0)},
	}
}

// Bits of nf_conntrack_common.h.
const (
	statusDNAT       = 1 << 5
	stateInvalid     = 1
	stateEstablished = 2
	stateRelated     = 4
	reply            = 1 // as a direction
)

func direction(d byte) []expr.Any {
	return join([]expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg1}}, is(d))
}

func fibType(withIIF bool) []expr.Any {
	return []expr.Any{&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: withIIF}}
}

func dnat(family byte, port uint32) []expr.Any {
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(family),
		RegAddrMin: reg1, RegAddrMax: reg1, RegProtoMin: port, RegProtoMax: port, Specified: true,
	}}
}

func fromMap(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: name}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// loopback is "lo" as the kernel compares it.
var loopback = append([]byte("lo"), make([]byte, 14)...)

// The anonymous sets' ids, above those of sets.
const (
	idDeaf   = 101
	idClosed = 102
)

// anonymousTypes are what the anonymous sets hold: types of rtnetlink.h for
// fib.
var anonymousTypes = map[uint32][]uint32{
	idDeaf:   {unix.RTN_BROADCAST, unix.RTN_MULTICAST, unix.RTN_ANYCAST},
	idClosed: {unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_MULTICAST, unix.RTN_ANYCAST},
}

// anonymous makes a set of fib types that lives with its rule. The rules name
// it by id.
func anonymous(id uint32) (*nftables.Set, []nftables.SetElement) {
	s := &nftables.Set{
		Table: table, ID: id, Name: "__set%d", Anonymous: true, Constant: true, KeyType: nftables.TypeFIBAddr,
		KeyByteOrder: binaryutil.NativeEndian,
	}
	types := anonymousTypes[id]
	elems := make([]nftables.SetElement, len(types))
	for i, t := range types {
		elems[i] = nftables.SetElement{Key: native32(t)}
	}
	return s, elems
}

func notInAnonymous(id uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: "__set%d", SetID: id, Invert: true}}
}

func base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, rules ...[]expr.Any) chain {
	accept := nftables.ChainPolicyAccept
	return chain{nftables.Chain{
		Name: name, Table: table, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept,
	}, rules}
}

// chains are ruleset.nft, rule by rule.
func chains() []chain {
	drop, ret, accept := verdict(expr.VerdictDrop), verdict(expr.VerdictReturn), verdict(expr.VerdictAccept)
	refuse := jump("refuse")
	const filter, nat = nftables.ChainTypeFilter, nftables.ChainTypeNAT
	toPort := join(fibType(false), is(native32(unix.RTN_LOCAL)...), jump("publish_port"))
	notLocal := join(fibType(true), compare(expr.CmpOpNeq, native32(unix.RTN_LOCAL)...), refuse)
	all := []chain{
		{nftables.Chain{Name: "refuse", Table: table}, [][]expr.Any{
			join(iif(), in("refused_from")),
			join(oif(), in("refused_to")),
			drop,
		}},
		{nftables.Chain{Name: "forged", Table: table}, [][]expr.Any{
			join([]expr.Any{&expr.Fib{Register: reg1, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true}}, is(0, 0, 0, 0), refuse),
		}},
		base("raw", filter, nftables.ChainHookPrerouting, -300,
			join(iif(), is(loopback...), ret),
			join(v4(), network(16, 1, reg1), is(127), refuse),
			join(v4(), network(12, 1, reg1), is(127), refuse),
			join(iif(), in("bridges"), goTo("forged")),
			join(daddr4(), in("shield4"), counted(), drop),
			join(saddr4(), in("shield4"), counted(), drop),
			join(daddr6(), in("shield6"), counted(), drop),
			join(saddr6(), in("shield6"), counted(), drop),
		),
		{nftables.Chain{Name: "publish_port", Table: table}, [][]expr.Any{
			join(daddr4(), meta(expr.MetaKeyL4PROTO, after4), dport(after8), fromMap("publish4"), dnat(unix.NFPROTO_IPV4, after4)),
			join(v4(), meta(expr.MetaKeyL4PROTO, reg1), dport(after4), fromMap("publish_any4"), dnat(unix.NFPROTO_IPV4, after4)),
			join(daddr6(), meta(expr.MetaKeyL4PROTO, reg2), dport(reg13), fromMap("publish6"), dnat(unix.NFPROTO_IPV6, reg2)),
			join(v6(), meta(expr.MetaKeyL4PROTO, reg1), dport(after4), fromMap("publish_any6"), dnat(unix.NFPROTO_IPV6, reg2)),
		}},
		base("nat_in", nat, nftables.ChainHookPrerouting, -100, toPort),
		base("nat_out", nat, nftables.ChainHookOutput, -100, toPort),
	}
	return append(append(all, forward()...),
		base("input", filter, nftables.ChainHookInput, 0,
			join(iif(), notIn("bridges"), ret),
			join(direction(reply), accept),
			join(iif(), in("deaf"), meta(expr.MetaKeyL4PROTO, reg1), compare(expr.CmpOpNeq, unix.IPPROTO_ICMPV6), fibType(true), notInAnonymous(idDeaf), refuse),
			join(iif(), in("closed"), fibType(true), notInAnonymous(idClosed), refuse),
			join(daddr4(), in("shield4"), notLocal),
			join(daddr6(), in("shield6"), notLocal),
		),
		base("nat_post", nat, nftables.ChainHookPostrouting, 100,
			join(oif(), is(loopback...), ret),
			join(oif(), in("bridges"), v4(), network(12, 1, reg1), is(127), masquerade()),
			join(oif(), in("bridges"), saddr6(), is(append(make([]byte, 15), 1)...), masquerade()),
			join(ctBits(expr.CtKeySTATUS, statusDNAT), saddr4(), meta(expr.MetaKeyOIFNAME, after4), in("hairpin4"), masquerade()),
			join(ctBits(expr.CtKeySTATUS, statusDNAT), saddr6(), meta(expr.MetaKeyOIFNAME, reg2), in("hairpin6"), masquerade()),
			join(oif(), notIn("bridges"), saddr4(), in("masq4"), masquerade()),
			join(oif(), notIn("bridges"), saddr6(), in("masq6"), masquerade()),
		),
	)
}

// forward is what decides over packets that are not for the host itself.
func forward() []chain {
	drop, ret, accept := verdict(expr.VerdictDrop), verdict(expr.VerdictReturn), verdict(expr.VerdictAccept)
	refuse := jump("refuse")
	const filter = nftables.ChainTypeFilter
	return []chain{
		{nftables.Chain{Name: "caged", Table: table}, [][]expr.Any{
			join(direction(reply), ret),
			refuse,
		}},
		{nftables.Chain{Name: "leave", Table: table}, [][]expr.Any{
			join(direction(reply), ctBits(expr.CtKeySTATUS, statusDNAT), accept),
			join(ctBits(expr.CtKeySTATE, stateInvalid), counted(), drop),
			join(iif(), meta(expr.MetaKeyOIFNAME, reg2), in("within"), accept),
			join(iif(), in("closed"), jump("caged")),
			join(ctBits(expr.CtKeySTATUS, statusDNAT), accept),
			join(oif(), notIn("bridges"), accept),
			join(oif(), in("open"), accept),
			join(iif(), in("open"), direction(reply), accept),
			refuse,
		}},
		{nftables.Chain{Name: "enter", Table: table}, [][]expr.Any{
			join(ctBits(expr.CtKeySTATUS, statusDNAT), accept),
			join(ctBits(expr.CtKeySTATE, stateInvalid), counted(), drop),
			join(oif(), in("open"), accept),
			join(ctBits(expr.CtKeySTATE, stateEstablished|stateRelated), accept),
			refuse,
		}},
		base("forward", filter, nftables.ChainHookForward, 0,
			join(iif(), in("bridges"), goTo("leave")),
			join(oif(), in("bridges"), goTo("enter")),
			join(meta(expr.MetaKeyNFPROTO, reg1), meta(expr.MetaKeyIIFNAME, after4), in("uplinks"),
				meta(expr.MetaKeyNFPROTO, reg1), meta(expr.MetaKeyOIFNAME, after4), in("uplinks"), counted(), drop),
		),
	}
}

// build queues the whole table, empty.
func build(c *nftables.Conn, store string) error {
	c.AddTable(table)
	for _, s := range sets {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	for _, id := range []uint32{idDeaf, idClosed} {
		s, elems := anonymous(id)
		if err := c.AddSet(s, elems); err != nil {
			return err
		}
	}
	all := chains()
	for i := range all {
		c.AddChain(&all[i].Chain)
	}
	for i := range all {
		for j, r := range all[i].rules {
			rule := &nftables.Rule{Table: table, Chain: &all[i].Chain, Exprs: r}
			if all[i].Name == "refuse" && j == len(all[i].rules)-1 {
				rule.UserData = userdata.AppendString(nil, userdata.TypeComment, storeComment+store)
			}
			c.AddRule(rule)
		}
	}
	return nil
}
