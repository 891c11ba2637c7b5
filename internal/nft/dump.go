package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"berth"
)

// The library leaves out of what it reads expressions that it does not know,
// the expressions of a set and the errno of a refusal. So tables, sets and
// rules are read here, and their expressions handed to the library one by one.

// request sends one message and returns the kernel's answers.
func (c *Conn) request(kind uint16, flags netlink.HeaderFlags, family nftables.TableFamily, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	return c.sock.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// attributes hands those of a message to do.
func attributes(b []byte, do func(*netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		do(ad)
	}
	return ad.Err()
}

func zeroEnded(s string) []byte { return append([]byte(s), 0) }

// steady runs a reading of several messages until nobody commits meanwhile:
// else it would mix two rulesets. A listing cut by a commit is marked by the
// kernel, but the library does not look.
func (c *Conn) steady(read func() error) error {
	const patience = 10
	before, err := c.generation()
	for range patience {
		if err != nil {
			return err
		}
		failed := read()
		var after uint32
		if after, err = c.generation(); err == nil && after == before {
			return failed
		}
		before = after
	}
	return fmt.Errorf("somebody else keeps changing it: %w", berth.ErrDrifted)
}

func (c *Conn) generation() (uint32, error) {
	replies, err := c.request(unix.NFT_MSG_GETGEN, 0, nftables.TableFamilyUnspecified)
	if err != nil {
		return 0, err
	}
	var gen uint32
	found := false
	for _, r := range replies {
		if len(r.Data) < 4 {
			continue
		}
		err := attributes(r.Data[4:], func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.NFTA_GEN_ID {
				gen, found = ad.Uint32(), true
			}
		})
		if err != nil {
			return 0, err
		}
	}
	if !found {
		return 0, errors.New("the kernel names none")
	}
	return gen, nil
}

// tableFlags reports whether a table is there and what flags it has.
func (c *Conn) tableFlags(t *nftables.Table) (flags uint32, ok bool, err error) {
	replies, err := c.request(unix.NFT_MSG_GETTABLE, 0, t.Family, netlink.Attribute{Type: unix.NFTA_TABLE_NAME, Data: zeroEnded(t.Name)})
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	for _, r := range replies {
		if len(r.Data) < 4 {
			continue
		}
		ok = true
		err = errors.Join(err, attributes(r.Data[4:], func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.NFTA_TABLE_FLAGS {
				flags = ad.Uint32()
			}
		}))
	}
	return flags, ok, err
}

// A kernelSet is how the kernel describes a set or map.
type kernelSet struct {
	flags, keyType, keyLen, dataType, dataLen, size uint32
	exprs                                           []string // of every element
}

// Attributes of nf_tables.h that x/sys/unix does not have.
const (
	attrSetExpr        = 17
	attrSetExpressions = 18
	flagConcat         = 0x80
	flagObject         = 0x40
)

// kernelSets lists the sets of a table; there are none where it is not.
func (c *Conn) kernelSets(t *nftables.Table) (map[string]kernelSet, error) {
	replies, err := c.request(unix.NFT_MSG_GETSET, netlink.Dump, t.Family, netlink.Attribute{Type: unix.NFTA_SET_TABLE, Data: zeroEnded(t.Name)})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	out := map[string]kernelSet{}
	for _, r := range replies {
		if len(r.Data) < 4 {
			continue
		}
		var s kernelSet
		name := ""
		err = errors.Join(err, attributes(r.Data[4:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				name = ad.String()
			case unix.NFTA_SET_FLAGS:
				s.flags = ad.Uint32()
			case unix.NFTA_SET_KEY_TYPE:
				s.keyType = ad.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				s.keyLen = ad.Uint32()
			case unix.NFTA_SET_DATA_TYPE:
				s.dataType = ad.Uint32()
			case unix.NFTA_SET_DATA_LEN:
				s.dataLen = ad.Uint32()
			case unix.NFTA_SET_DESC:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						if ad.Type() == unix.NFTA_SET_DESC_SIZE {
							s.size = binary.BigEndian.Uint32(ad.Bytes())
						}
					}
					return nil
				})
			case attrSetExpr:
				n, _ := nameAndData(ad.Bytes())
				s.exprs = append(s.exprs, n)
			case attrSetExpressions:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						n, _ := nameAndData(ad.Bytes())
						s.exprs = append(s.exprs, n)
					}
					return nil
				})
			}
		}))
		out[name] = s
	}
	return out, err
}

// A kernelRule is a rule as the kernel lists it.
type kernelRule struct {
	exprs    []any // each an expr.Any or an unknownExpr
	userData []byte
}

// An unknownExpr is an expression that this package does not read.
type unknownExpr struct{ name string }

// kernelRules lists the rules of a table by chain.
func (c *Conn) kernelRules(t *nftables.Table) (map[string][]kernelRule, error) {
	replies, err := c.request(unix.NFT_MSG_GETRULE, netlink.Dump, t.Family, netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: zeroEnded(t.Name)})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	out := map[string][]kernelRule{}
	for _, m := range replies {
		if len(m.Data) < 4 {
			continue
		}
		var r kernelRule
		chain := ""
		err = errors.Join(err, attributes(m.Data[4:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_USERDATA:
				r.userData = ad.Bytes()
			case unix.NFTA_RULE_EXPRESSIONS:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						name, data := nameAndData(ad.Bytes())
						r.exprs = append(r.exprs, expression(byte(t.Family), name, data))
					}
					return nil
				})
			}
		}))
		out[chain] = append(out[chain], r)
	}
	return out, err
}

func nameAndData(b []byte) (name string, data []byte) {
	// What cannot be read has no name, and so is known to nobody.
	_ = attributes(b, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
	})
	return name, data
}

// expressions are those that rules of ours are made of, and those that can be
// understood in rules of others.
var expressions = map[string]func() expr.Any{
	"bitwise":   func() expr.Any { return &expr.Bitwise{} },
	"cmp":       func() expr.Any { return &expr.Cmp{} },
	"counter":   func() expr.Any { return &expr.Counter{} },
	"ct":        func() expr.Any { return &expr.Ct{} },
	"fib":       func() expr.Any { return &expr.Fib{} },
	"immediate": func() expr.Any { return &expr.Immediate{} },
	"log":       func() expr.Any { return &expr.Log{} },
	"lookup":    func() expr.Any { return &expr.Lookup{} },
	"masq":      func() expr.Any { return &expr.Masq{} },
	"match":     func() expr.Any { return &expr.Match{} },
	"meta":      func() expr.Any { return &expr.Meta{} },
	"nat":       func() expr.Any { return &expr.NAT{} },
	"payload":   func() expr.Any { return &expr.Payload{} },
	"reject":    func() expr.Any { return &expr.Reject{} },
	"target":    func() expr.Any { return &expr.Target{} },
}

func expression(family byte, name string, data []byte) any {
	make := expressions[name]
	if make == nil {
		return unknownExpr{name}
	}
	e := make()
	if err := expr.Unmarshal(family, data, e); err != nil {
		return unknownExpr{name}
	}
	// A verdict is an immediate into the verdict's register.
	if imm, ok := e.(*expr.Immediate); ok && imm.Register == unix.NFT_REG_VERDICT && len(imm.Data) == 0 {
		v := &expr.Verdict{}
		if err := expr.Unmarshal(family, data, v); err != nil {
			return unknownExpr{name}
		}
		return v
	}
	return e
}
