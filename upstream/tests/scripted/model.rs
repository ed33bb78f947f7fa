//! A small NFSv3 server in memory: what the scripted server answers when it does not lie.

use std::collections::BTreeMap;

use bytes::Bytes;
use gridvfs_vfs::nfs3::{self, PlainPage};
use gridvfs_vfs::rpc::CallHeader;
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr};
use gridvfs_vfs::*;

#[derive(Clone)]
pub struct Node {
    pub attr: Attr,
    pub data: Vec<u8>,
    pub names: BTreeMap<Vec<u8>, u64>,
}

pub struct Model {
    pub nodes: BTreeMap<u64, Node>,
    next: u64,
    clock: i64,
    pub read_max: u32,
    pub write_max: u32,
    pub write_verifier: Verifier,
    pub readdirplus: bool,
    /// What is made of the answers to FETCH.
    pub fetch_lie: Option<fn(&mut ext::PackedFetch)>,
    exclusive: BTreeMap<u64, Verifier>,
}

pub const ROOT: u64 = 1;

pub fn handle(number: u64) -> FileHandle {
    FileHandle::new(&number.to_be_bytes()).expect("short")
}

fn number(handle: &FileHandle) -> Result<u64> {
    let bytes = handle.as_bytes().try_into().map_err(|_| Status::BADHANDLE)?;
    Ok(u64::from_be_bytes(bytes))
}

impl Model {
    pub fn new() -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
            next: ROOT,
            clock: 1_000,
            read_max: 1 << 20,
            write_max: 1 << 20,
            write_verifier: [1; 8],
            readdirplus: true,
            fetch_lie: None,
            exclusive: BTreeMap::new(),
        };
        model.make(FileKind::Directory, &SetAttr { mode: Some(0o755), ..SetAttr::default() });
        model
    }

    pub fn make(&mut self, kind: FileKind, wanted: &SetAttr) -> u64 {
        let fileid = self.next;
        self.next += 1;
        self.clock += 1;
        let time = Time { seconds: self.clock, nanoseconds: 0 };
        let attr = Attr {
            kind,
            mode: wanted.mode.unwrap_or(0o644),
            links: if kind == FileKind::Directory { 2 } else { 1 },
            uid: wanted.uid.unwrap_or(0),
            gid: wanted.gid.unwrap_or(0),
            size: 0,
            used: 0,
            device: DeviceNumber::default(),
            fsid: 7,
            fileid,
            atime: if let gridvfs_vfs::SetTime::To(time) = wanted.atime { time } else { time },
            mtime: time,
            ctime: time,
        };
        let node =
            Node { attr, data: vec![0; wanted.size.unwrap_or(0) as usize], names: BTreeMap::new() };
        self.nodes.insert(fileid, node);
        fileid
    }

    pub fn add_file(&mut self, name: &str, data: Vec<u8>) -> FileHandle {
        let fileid = self.make(FileKind::Regular, &SetAttr::default());
        self.node(&handle(fileid)).expect("made").data = data;
        self.node(&handle(ROOT)).expect("root").names.insert(name.into(), fileid);
        handle(fileid)
    }

    pub fn node(&mut self, file: &FileHandle) -> Result<&mut Node> {
        Ok(self.nodes.get_mut(&number(file)?).ok_or(Status::STALE)?)
    }

    fn attr(&mut self, file: &FileHandle) -> Option<Attr> {
        let node = self.node(file).ok()?;
        Some(Attr { size: node.data.len() as u64, ..node.attr })
    }

    fn touch(&mut self, file: &FileHandle) -> Result<Wcc> {
        self.clock += 1;
        let time = Time { seconds: self.clock, nanoseconds: 0 };
        let before = self.attr(file).as_ref().map(WccAttr::from);
        let node = self.node(file)?;
        (node.attr.mtime, node.attr.ctime) = (time, time);
        Ok(Wcc { before, after: self.attr(file) })
    }

    fn named(&mut self, at: &nfs3::DirOpArgs) -> Result<u64> {
        let names = &self.node(&at.dir)?.names;
        Ok(*names.get(&at.name.0[..]).ok_or(Status::NOENT)?)
    }

    fn insert(&mut self, at: &nfs3::DirOpArgs, fileid: u64) -> Result<Created> {
        self.node(&at.dir)?.names.insert(at.name.0.to_vec(), fileid);
        let dir_wcc = self.touch(&at.dir)?;
        Ok(Created { handle: Some(handle(fileid)), attr: self.attr(&handle(fileid)), dir_wcc })
    }

    fn make_at(&mut self, at: &nfs3::DirOpArgs, kind: FileKind, attr: &SetAttr) -> Result<Created> {
        if self.named(at).is_ok() {
            return Err(Status::EXIST.into());
        }
        let fileid = self.make(kind, attr);
        self.insert(at, fileid)
    }

    fn remove(&mut self, at: &nfs3::DirOpArgs) -> Result<Wcc> {
        self.named(at)?;
        self.node(&at.dir)?.names.remove(&at.name.0[..]);
        self.touch(&at.dir)
    }

    /// Executes a call; returns its results in XDR.
    pub fn execute(&mut self, header: &CallHeader, from: &mut Decoder) -> Vec<u8> {
        let mut to = Encoder::new();
        match header.program {
            nfs3::PROGRAM => self.procedure(header.procedure, from, &mut to),
            ext::PROGRAM => self.extension(header.procedure, from, &mut to),
            program => panic!("program {program} is not in the model"),
        }
        .expect("good arguments");
        to.into_vec()
    }

    fn procedure(
        &mut self,
        procedure: u32,
        from: &mut Decoder,
        to: &mut Encoder,
    ) -> xdr::XdrResult<()> {
        fn put<T: Xdr, F: Xdr + Default>(result: Result<T>, to: &mut Encoder) {
            nfs3::Reply::<T, F>::from(result).encode(to);
        }
        type Post = Option<Attr>;
        match procedure {
            nfs3::NULL => {}
            nfs3::GETATTR => {
                let file = FileHandle::decode(from)?;
                put::<_, ()>(self.attr(&file).ok_or(Status::STALE.into()), to);
            }
            nfs3::SETATTR => {
                let args = nfs3::SetAttrArgs::decode(from)?;
                put::<_, Wcc>(self.setattr(&args), to);
            }
            nfs3::LOOKUP => {
                let at = nfs3::DirOpArgs::decode(from)?;
                let entry = self.named(&at).map(|fileid| Entry {
                    handle: handle(fileid),
                    attr: self.attr(&handle(fileid)),
                    dir_attr: self.attr(&at.dir),
                });
                put::<_, Post>(entry, to);
            }
            nfs3::ACCESS => {
                let args = nfs3::AccessArgs::decode(from)?;
                // More than was asked for, which is not to be passed on.
                put::<_, Post>(
                    Ok(AccessGranted { granted: Access(0x3f), attr: self.attr(&args.file) }),
                    to,
                );
            }
            nfs3::READLINK => {
                let file = FileHandle::decode(from)?;
                let path = self
                    .node(&file)
                    .map(|node| (None::<Attr>, nfs3::Path(node.data.clone().into())));
                put::<_, Post>(path, to);
            }
            nfs3::READ => {
                let args = nfs3::ReadArgs::decode(from)?;
                let max = self.read_max;
                let attr = self.attr(&args.file);
                let read = self.node(&args.file).map(|node| {
                    let start = (args.offset as usize).min(node.data.len());
                    let end = (start + args.count.min(max) as usize).min(node.data.len());
                    let data = Bytes::copy_from_slice(&node.data[start..end]);
                    ReadData { data, eof: end == node.data.len(), attr }
                });
                put::<_, Post>(read, to);
            }
            nfs3::WRITE => {
                let args = nfs3::WriteArgs::decode(from)?;
                put::<_, Wcc>(self.write(&args), to);
            }
            nfs3::CREATE => {
                let args = nfs3::CreateArgs::decode(from)?;
                put::<_, Wcc>(self.create(&args), to);
            }
            nfs3::MKDIR => {
                let args = nfs3::MkdirArgs::decode(from)?;
                put::<_, Wcc>(self.make_at(&args.at, FileKind::Directory, &args.attr), to);
            }
            nfs3::SYMLINK => {
                let args = nfs3::SymlinkArgs::decode(from)?;
                let made = self.make_at(&args.at, FileKind::Symlink, &args.attr);
                if let Ok(Created { handle: Some(file), .. }) = &made {
                    self.node(file).expect("made").data = args.target.0.to_vec();
                }
                put::<_, Wcc>(made, to);
            }
            nfs3::MKNOD => {
                let args = nfs3::MknodArgs::decode(from)?;
                put::<_, Wcc>(self.make_at(&args.at, FileKind::Fifo, &args.attr), to);
            }
            nfs3::REMOVE | nfs3::RMDIR => {
                let at = nfs3::DirOpArgs::decode(from)?;
                put::<_, Wcc>(self.remove(&at), to);
            }
            nfs3::RENAME => {
                let args = nfs3::RenameArgs::decode(from)?;
                let renamed = self.named(&args.from).and_then(|fileid| {
                    let removed = self.remove(&args.from)?;
                    Ok((removed, self.insert(&args.to, fileid)?.dir_wcc))
                });
                put::<_, (Wcc, Wcc)>(renamed, to);
            }
            nfs3::LINK => {
                let args = nfs3::LinkArgs::decode(from)?;
                put::<_, (Post, Wcc)>(self.link(&args), to);
            }
            nfs3::READDIR => {
                let args = nfs3::ReadDirArgs::decode(from)?;
                put::<_, Post>(
                    self.list(&args.dir, args.cookie, args.count, false).map(PlainPage),
                    to,
                );
            }
            nfs3::READDIRPLUS if !self.readdirplus => {
                put::<DirPage, Post>(Err(Status::NOTSUPP.into()), to);
            }
            nfs3::READDIRPLUS => {
                let args = nfs3::ReadDirPlusArgs::decode(from)?;
                put::<_, Post>(self.list(&args.dir, args.cookie, args.max_count, true), to);
            }
            nfs3::FSINFO => {
                let info = FsInfo {
                    read_max: self.read_max,
                    read_preferred: self.read_max,
                    read_multiple: 1,
                    write_max: self.write_max,
                    write_preferred: self.write_max,
                    write_multiple: 1,
                    readdir_preferred: 4096,
                    file_size_max: u64::MAX,
                    time_delta_ns: 1,
                    properties: 0,
                };
                put::<_, Post>(Ok((None::<Attr>, info)), to);
            }
            nfs3::COMMIT => {
                let args = nfs3::CommitArgs::decode(from)?;
                let wcc = Wcc { before: None, after: self.attr(&args.file) };
                put::<_, Wcc>(Ok(Committed { verifier: self.write_verifier, wcc }), to);
            }
            _ => panic!("procedure {procedure} is not in the model"),
        }
        Ok(())
    }

    fn extension(
        &mut self,
        procedure: u32,
        from: &mut Decoder,
        to: &mut Encoder,
    ) -> xdr::XdrResult<()> {
        match procedure {
            ext::SEEK => {
                let args = ext::SeekArgs::decode(from)?;
                ext::SeekReply::Ok(args.offset + 1000).encode(to);
            }
            ext::ALLOCATE => {
                let args = ext::AllocateArgs::decode(from)?;
                let size = (args.offset + args.length) as usize;
                let grown = self.node(&args.file).map(|node| node.data.resize(size, 0));
                ext::AllocateReply::from(grown.and_then(|()| self.touch(&args.file))).encode(to);
            }
            ext::RENAME_NOREPLACE => {
                let args = nfs3::RenameArgs::decode(from)?;
                let renamed = match self.named(&args.to) {
                    Ok(_) => Err(Status::EXIST.into()),
                    Err(_) => self.named(&args.from).and_then(|fileid| {
                        let removed = self.remove(&args.from)?;
                        Ok((removed, self.insert(&args.to, fileid)?.dir_wcc))
                    }),
                };
                nfs3::RenameReply::from(renamed).encode(to);
            }
            ext::FETCH => {
                let args = ext::FetchArgs::decode(from)?;
                ext::FetchReply::from(self.fetch(&args)).encode(to);
            }
            _ => panic!("extension {procedure} is not in the model"),
        }
        Ok(())
    }

    fn fetch(&mut self, args: &ext::FetchArgs) -> Result<ext::PackedFetch> {
        let attr = self.attr(&args.file).ok_or(Status::STALE)?;
        let data = &self.node(&args.file)?.data;
        let mut built = ext::FetchBuilder::default();
        for &(offset, length) in &args.ranges {
            let start = (offset as usize).min(data.len());
            let part = &data[start..(start + length as usize).min(data.len())];
            built.push(part.len() as u32, &[(0, Bytes::copy_from_slice(part))]);
        }
        let mut packed = built.pack(attr, args.level, &mut ext::FetchPacker::default());
        if let Some(lie) = self.fetch_lie {
            lie(&mut packed);
        }
        Ok(packed)
    }

    fn setattr(&mut self, args: &nfs3::SetAttrArgs) -> Result<Wcc> {
        let attr = self.attr(&args.file).ok_or(Status::STALE)?;
        if args.guard.is_some_and(|guard| guard != attr.ctime) {
            return Err(Status::NOT_SYNC.into());
        }
        let node = self.node(&args.file)?;
        node.attr.mode = args.changes.mode.unwrap_or(node.attr.mode);
        if let Some(size) = args.changes.size {
            node.data.resize(size as usize, 0);
        }
        self.touch(&args.file)
    }

    fn write(&mut self, args: &nfs3::WriteArgs) -> Result<Written> {
        let count = args.head.count.min(self.write_max) as usize;
        let start = args.head.offset as usize;
        let node = self.node(&args.head.file)?;
        node.data.resize(node.data.len().max(start + count), 0);
        node.data[start..start + count].copy_from_slice(&args.data[..count]);
        let wcc = self.touch(&args.head.file)?;
        let verifier = self.write_verifier;
        Ok(Written { count: count as u32, committed: args.head.stable, verifier, wcc })
    }

    fn create(&mut self, args: &nfs3::CreateArgs) -> Result<Created> {
        match (&args.how, self.named(&args.at)) {
            (CreateHow::Unchecked(_), Ok(fileid)) => self.insert(&args.at, fileid),
            (CreateHow::Exclusive(verifier), Ok(fileid))
                if self.exclusive.get(&fileid) == Some(verifier) =>
            {
                self.insert(&args.at, fileid)
            }
            (CreateHow::Exclusive(verifier), Err(_)) => {
                let created = self.make_at(&args.at, FileKind::Regular, &SetAttr::default())?;
                self.exclusive.insert(created.attr.expect("told").fileid, *verifier);
                Ok(created)
            }
            (CreateHow::Unchecked(attr) | CreateHow::Guarded(attr), Err(_)) => {
                self.make_at(&args.at, FileKind::Regular, attr)
            }
            (_, Ok(_)) => Err(Status::EXIST.into()),
        }
    }

    fn link(&mut self, args: &nfs3::LinkArgs) -> Result<Linked> {
        if self.named(&args.at).is_ok() {
            return Err(Status::EXIST.into());
        }
        self.node(&args.file)?.attr.links += 1;
        let created = self.insert(&args.at, number(&args.file)?)?;
        Ok(Linked { attr: created.attr, dir_wcc: created.dir_wcc })
    }

    fn list(&mut self, dir: &FileHandle, cookie: u64, count: u32, plus: bool) -> Result<DirPage> {
        let names: Vec<_> = self.node(dir)?.names.clone().into_iter().collect();
        let mut bytes = 200;
        let mut entries = Vec::new();
        for (at, (name, fileid)) in names.iter().enumerate().skip(cookie as usize) {
            bytes += 200 + name.len();
            if bytes > count as usize {
                break;
            }
            let file = handle(*fileid);
            entries.push(DirEntry {
                fileid: *fileid,
                name: name.clone().into(),
                cookie: at as u64 + 1,
                attr: self.attr(&file).filter(|_| plus),
                handle: Some(file).filter(|_| plus),
            });
        }
        if entries.is_empty() && names.len() > cookie as usize {
            return Err(Status::TOOSMALL.into());
        }
        let eof = cookie as usize + entries.len() == names.len();
        Ok(DirPage { entries, eof, verifier: [3; 8], dir_attr: self.attr(dir) })
    }
}
